"""ComfyUI's core nodes as their sources declare them, and a workflow held against them.

Inputs are required unless their type ends with `?`; a capital type is that of a link, a tuple the values of a choice.
Sources: nodes.py, comfy/samplers.py and comfy_extras/nodes_{flux,sd3,qwen,cfg,model_advanced}.py of ComfyUI 0.3.64;
`index_timestep_zero` came with the support of Qwen-Image-Edit-2511.
"""

SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm", "ddim", "uni_pc")
SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
)  # fmt: skip
TEXTS = ("stable_diffusion", "sdxl", "sd3", "flux", "qwen_image")
DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
DEVICES = ("default", "cpu")

NODES: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "UNETLoader": ({"unet_name": str, "weight_dtype": DTYPES}, ("MODEL",)),
    "CLIPLoader": ({"clip_name": str, "type": TEXTS, "device?": DEVICES}, ("CLIP",)),
    "DualCLIPLoader": ({"clip_name1": str, "clip_name2": str, "type": TEXTS, "device?": DEVICES}, ("CLIP",)),
    "VAELoader": ({"vae_name": str}, ("VAE",)),
    "CheckpointLoaderSimple": ({"ckpt_name": str}, ("MODEL", "CLIP", "VAE")),
    "LoraLoaderModelOnly": ({"model": "MODEL", "lora_name": str, "strength_model": float}, ("MODEL",)),
    "LoraLoader": (
        {"model": "MODEL", "clip": "CLIP", "lora_name": str, "strength_model": float, "strength_clip": float},
        ("MODEL", "CLIP"),
    ),
    "ModelSamplingAuraFlow": ({"model": "MODEL", "shift": float}, ("MODEL",)),
    "ModelSamplingFlux": (
        {"model": "MODEL", "max_shift": float, "base_shift": float, "width": int, "height": int},
        ("MODEL",),
    ),
    "CFGNorm": ({"model": "MODEL", "strength": float}, ("MODEL",)),
    "TextEncodeQwenImageEdit": (
        {"clip": "CLIP", "prompt": str, "vae?": "VAE", "image?": "IMAGE"},
        ("CONDITIONING",),
    ),
    "TextEncodeQwenImageEditPlus": (
        {"clip": "CLIP", "prompt": str, "vae?": "VAE", "image1?": "IMAGE", "image2?": "IMAGE", "image3?": "IMAGE"},
        ("CONDITIONING",),
    ),
    "FluxKontextImageScale": ({"image": "IMAGE"}, ("IMAGE",)),
    "FluxKontextMultiReferenceLatentMethod": (
        {
            "conditioning": "CONDITIONING",
            "reference_latents_method": ("offset", "index", "uxo/uno", "index_timestep_zero"),
        },
        ("CONDITIONING",),
    ),
    "ReferenceLatent": ({"conditioning": "CONDITIONING", "latent?": "LATENT"}, ("CONDITIONING",)),
    "FluxGuidance": ({"conditioning": "CONDITIONING", "guidance": float}, ("CONDITIONING",)),
    "CLIPTextEncode": ({"text": str, "clip": "CLIP"}, ("CONDITIONING",)),
    "ConditioningZeroOut": ({"conditioning": "CONDITIONING"}, ("CONDITIONING",)),
    "EmptySD3LatentImage": ({"width": int, "height": int, "batch_size": int}, ("LATENT",)),
    "EmptyLatentImage": ({"width": int, "height": int, "batch_size": int}, ("LATENT",)),
    "VAEEncode": ({"pixels": "IMAGE", "vae": "VAE"}, ("LATENT",)),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "KSampler": (
        {
            "model": "MODEL",
            "seed": int,
            "steps": int,
            "cfg": float,
            "sampler_name": SAMPLERS,
            "scheduler": SCHEDULERS,
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
            "denoise": float,
        },
        ("LATENT",),
    ),
    "LoadImage": ({"image": str}, ("IMAGE", "MASK")),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": str}, ()),
}


def faults(workflow):
    """Everything that ComfyUI would refuse about a workflow in its API format."""
    found = []
    for number, node in workflow.items():
        name = node["class_type"]
        if name not in NODES:
            found.append(f"{number}: no node {name}")
            continue
        inputs = {key.rstrip("?"): kind for key, kind in NODES[name][0].items()}
        needed = {key for key in NODES[name][0] if not key.endswith("?")}
        found += [f"{number} {name}: lacks {one}" for one in sorted(needed - node["inputs"].keys())]
        found += [f"{number} {name}: unknown {one}" for one in sorted(node["inputs"].keys() - inputs.keys())]
        known = ((key, value) for key, value in node["inputs"].items() if key in inputs)
        found += [
            f"{number} {name}: {key} = {value!r}" for key, value in known if not _fits(value, inputs[key], workflow)
        ]
    saved = [node for node in workflow.values() if not NODES.get(node["class_type"], ({}, ("?",)))[1]]
    return found if saved else [*found, "nothing is drawn: no output node"]


def _fits(value, kind, workflow):
    if isinstance(kind, tuple):
        return value in kind
    if isinstance(kind, str):
        if not (isinstance(value, list) and len(value) == 2 and value[0] in workflow):
            return False
        outputs = NODES[workflow[value[0]]["class_type"]][1]
        return isinstance(value[1], int) and value[1] < len(outputs) and outputs[value[1]] == kind
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


def of(workflow, kind):
    """The inputs of the one node of a class."""
    (found,) = [node["inputs"] for node in workflow.values() if node["class_type"] == kind]
    return found

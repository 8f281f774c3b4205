"""What a LoRA file is, told from its header alone: foreign files, odd files, broken files."""

import json
import struct
import subprocess
import sys

import pytest

from lorakit import Kit, lora_about, lora_facts
from lorakit.errors import ModelError
from lorakit.layer_names import LAYOUTS, Names, kind


@pytest.fixture(scope="module")
def kit():
    return Kit()


SIZES = {"F32": 4, "F16": 2, "BF16": 2}


def write(path, tensors, metadata=None, cut=0):
    """A safetensors file of zeros, or of the bytes that are given in place of a shape."""
    table, body = {}, b""
    for name, (dtype, shape) in tensors.items():
        data = shape if isinstance(shape, bytes) else bytes(SIZES[dtype])
        if not isinstance(shape, bytes):
            for side in shape:
                data = data * side
        table[name] = {
            "dtype": dtype,
            "shape": [] if isinstance(shape, bytes) else list(shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    header = json.dumps({"__metadata__": metadata, **table} if metadata else table).encode()
    path.write_bytes((len(header).to_bytes(8, "little") + header + body)[: -cut or None])
    return path


def pair(name, ends=("lora_A.weight", "lora_B.weight"), rank=2, sizes=(4, 6), alpha=None, dtype="BF16"):
    found = {f"{name}.{ends[0]}": (dtype, (rank, sizes[0])), f"{name}.{ends[1]}": (dtype, (sizes[1], rank))}
    return found if alpha is None else {**found, f"{name}.alpha": ("F32", struct.pack("<f", alpha))}


KOHYA = ("lora_down.weight", "lora_up.weight")
FOREIGN = {
    "ai-toolkit, Qwen": (pair("diffusion_model.transformer_blocks.0.img_mlp.net.2"), "qwen", "comfyui"),
    "musubi, Qwen": (pair("lora_unet_transformer_blocks_59_attn_to_out_0", KOHYA, alpha=1), "qwen", "kohya"),
    "DiffSynth, Qwen": (
        pair("transformer_blocks.0.txt_mlp.net.0.proj", ("lora_A.default.weight", "lora_B.default.weight")),
        "qwen",
        "bare",
    ),
    "peft, Qwen": (pair("base_model.model.transformer_blocks.3.img_mod.1"), "qwen", "peft"),
    "ai-toolkit, FLUX": (pair("transformer.single_transformer_blocks.37.proj_mlp"), "flux", "diffusers"),
    "sd-scripts, FLUX": (pair("lora_unet_double_blocks_18_img_attn_qkv", KOHYA, sizes=(4, 12)), "flux", "kohya"),
    "OneTrainer, FLUX": (pair("lora_transformer_single_transformer_blocks_0_attn_to_q", KOHYA), "flux", "kohya"),
    "sd-scripts, SDXL": (
        pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", KOHYA, alpha=1),
        "sdxl",
        "kohya",
    ),
    "kohya by diffusers' names, SDXL": (
        pair("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", KOHYA),
        "sdxl",
        "kohya",
    ),
    "diffusers, SDXL": (
        pair("unet.up_blocks.0.attentions.2.transformer_blocks.9.ff.net.2", ("lora.down.weight", "lora.up.weight")),
        "sdxl",
        "diffusers",
    ),
    "LyCORIS, SDXL": (pair("lycoris_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", KOHYA), "sdxl", "lycoris"),
    "text encoder, SDXL": (
        pair("lora_te2_text_model_encoder_layers_31_mlp_fc1", KOHYA, alpha=2),
        "sdxl",
        "kohya",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_known_by_their_names(tmp_path, kit, name):
    tensors, family, layout = FOREIGN[name]
    facts = kit.inspect(write(tmp_path / "x.safetensors", tensors))
    assert facts.family.name == family
    assert facts.layout == layout
    assert not facts.unknown


def test_every_name_that_is_written_is_read_back(kit):
    for family in kit.shelves.families.values():
        names = Names(family)
        for layer in (one.replace("#", "7") for one in family.file_layers):
            for layout in LAYOUTS:
                name, layers = names.written(layer, layout)
                assert layer in layers
                assert names.read(name).layers == layers, (layer, name)


def test_the_layers_that_are_taught_may_stand_in_files(kit):
    """The usual targets, and those that may be chosen, are layers of files; so are those of trained text encoders."""
    for family in kit.shelves.families.values():
        kinds = {kind(layer) for layer in family.file_layers}
        for target in (*family.lora_targets, *family.modulation, *family.text_targets):
            assert any(one == target or one.endswith(f".{target}") for one in kinds), (family.name, target)


def test_ranks_alphas_and_scales(tmp_path, kit):
    tensors = {
        **pair("lora_unet_transformer_blocks_0_attn_to_q", KOHYA, rank=4, alpha=2),
        **pair("lora_unet_transformer_blocks_1_attn_to_q", KOHYA, rank=8),
    }
    facts = kit.inspect(write(tmp_path / "x.safetensors", tensors, {"ss_base_model_version": "qwen_image"}))
    assert lora_facts.ranks(facts) == {4: 1, 8: 1}
    assert lora_facts.alphas(facts) == {2.0: 1, None: 1}
    assert sorted(one.scale for one in facts.layers) == [0.5, 1.0]
    assert {one.kind for one in facts.layers} == {"attn.to_q"}


@pytest.mark.parametrize(
    ("dtype", "data"), [("BF16", b"\x40\x40"), ("F16", struct.pack("<e", 3)), ("F64", struct.pack("<d", 3))]
)
def test_an_alpha_in_any_format(tmp_path, kit, dtype, data):
    name = "lora_unet_transformer_blocks_0_img_mlp_net_2"
    facts = kit.inspect(write(tmp_path / "x.safetensors", {**pair(name, KOHYA), f"{name}.alpha": (dtype, data)}))
    assert facts.layers[0].alpha == 3


def test_the_metadata_decides_between_families_that_share_names(tmp_path, kit):
    tensors = pair("transformer.transformer_blocks.0.attn.to_q")
    facts = kit.inspect(write(tmp_path / "x.safetensors", tensors))
    assert facts.family is None
    assert [one.family.name for one in facts.names] == ["flux", "qwen"]
    assert "say --family" in facts.notes[0]
    assert kit.inspect(facts.file, "qwen").family.name == "qwen"
    about = {"modelspec.architecture": "Qwen-Image-Edit-Plus/lora"}
    facts = kit.inspect(write(tmp_path / "x.safetensors", tensors, about))
    assert (facts.family.name, facts.variants) == ("qwen", ("edit-2509",))


def test_a_file_that_no_family_knows(tmp_path, kit):
    facts = kit.inspect(write(tmp_path / "x.safetensors", pair("diffusion_model.layers.0.attention.qkv")))
    assert (facts.names, facts.layout) == ([], "comfyui")
    assert facts.notes == ("no installed family knows these layers",)
    assert facts.layers[0].kind == "diffusion_model.layers.#.attention.qkv"


def test_what_is_odd_is_told(tmp_path, kit):
    tensors = {
        **pair("transformer.transformer_blocks.0.attn.to_q", alpha=1),
        **pair("transformer.transformer_blocks.0.img_mlp.net.2"),
        **pair("transformer.something.else"),
        "transformer.transformer_blocks.0.attn.to_q.dora_scale": ("F32", (6,)),
        "transformer.transformer_blocks.9.attn.to_q.lora_A.weight": ("F32", (2, 4)),
    }
    about = {"lora_adapter_metadata": '{"transformer.lora_alpha": 1}', "ss_base_model_version": "qwen_image"}
    told = " | ".join(kit.inspect(write(tmp_path / "x.safetensors", tensors, about)).notes)
    for words in (
        "1 layer unknown",
        "dora_scale (1)",
        "halves without the other (1)",
        "alpha tensors",
        "by 0.5 in diffus",
    ):
        assert words in told.replace("0.667", "0.5")


@pytest.mark.parametrize(
    ("table", "scale"),
    [
        ({"transformer.lora_alpha": 4}, 2),
        ({"transformer.lora_alpha": 4, "transformer.use_rslora": True}, 4 / 2**0.5),
        ({"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"net.2": 1}}, 0.5),
        ({"text_encoder.lora_alpha": 4}, 1),
        ({"transformer.lora_alpha": "four"}, 1),
        ([], 1),
    ],
)
def test_the_scale_of_pefts_configuration(tmp_path, kit, table, scale):
    about = {"lora_adapter_metadata": json.dumps(table)}
    file = write(tmp_path / "x.safetensors", pair("transformer.transformer_blocks.0.img_mlp.net.2"), about)
    assert kit.inspect(file).layers[0].scale == pytest.approx(scale)


def test_triggers_by_the_places_that_tell_them():
    assert lora_about.trigger({"ss_trigger_words": "b", "modelspec.trigger_phrase": "a"})[0] == "a"
    tags = json.dumps({"10_x": {"sks": 5, "red": 2}, "y": {"red": 1}})
    assert lora_about.trigger({"ss_tag_frequency": tags}) == (
        "sks",
        "the commonest of 2 tags in ss_tag_frequency, 5 times",
    )
    for odd in ("[]", "{", '{"x": 3}', '{"x": {"y": "z"}}', "[" * 100_000):
        lora_about.trigger({"ss_tag_frequency": odd})


BROKEN = {
    "cut": lambda path: (
        write(path, pair("transformer.transformer_blocks.0.attn.to_q"), cut=0) and path.write_bytes(b"\x09")
    ),
    "no safetensors": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "a header too long": lambda path: path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}"),
    "a header that is a list": lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
    "a tensor without shape": lambda path: path.write_bytes((8).to_bytes(8, "little") + b'{"a":{}}'),
    "negative": lambda path: (
        write(path, {}) and _raw(path, {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})
    ),
    "endless": lambda path: _raw(path, {"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}),
    "metadata that is text": lambda path: _raw(path, {"__metadata__": "x"}),
    "nothing": lambda path: write(path, {}),
    "a model": lambda path: write(path, {"model.weight": ("F32", (2, 2))}),
    "halves that do not fit": lambda path: write(
        path, {"x.lora_A.weight": ("F32", (2, 4)), "x.lora_B.weight": ("F32", (4, 3))}
    ),
    "flat halves": lambda path: write(path, {"x.lora_A.weight": ("F32", (2,)), "x.lora_B.weight": ("F32", (2,))}),
    "a rank of nothing": lambda path: write(
        path, {"x.lora_A.weight": ("F32", (0, 4)), "x.lora_B.weight": ("F32", (4, 0))}
    ),
    "a folder": lambda path: path.mkdir(),
    "gone": lambda path: None,
}


def _raw(path, table):
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_told_in_words(tmp_path, kit, name):
    file = tmp_path / "x.safetensors"
    BROKEN[name](file)
    with pytest.raises(ModelError):
        kit.inspect(file)


def test_a_pickle_is_not_opened(tmp_path, kit):
    file = tmp_path / "x.pt"
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"the LoRA file .* is pickled"):
        kit.inspect(file)


def test_the_header_needs_no_torch(tmp_path):
    file = write(tmp_path / "x.safetensors", pair("transformer.transformer_blocks.0.img_mlp.net.2"))
    code = (
        "import sys\nfrom lorakit.cli import run\n"
        f"assert run(['inspect', '--no-norms', {str(file)!r}]) == 0\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0

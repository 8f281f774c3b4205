"""The command lines of diffusers' DreamBooth LoRA examples (examples/dreambooth/train_dreambooth_lora*.py)."""

from __future__ import annotations

from collections.abc import Mapping

from lorakit.family import Family
from lorakit.importers.commands import Command
from lorakit.importers.conditioning import text_encoder, told, weighted
from lorakit.importers.document import Document
from lorakit.importers.draft import Draft, flag, number, positive, text, whole
from lorakit.importers.entries import Entry, keep
from lorakit.importers.keys import Fixed, Off, Plain, Told, tell_all
from lorakit.importers.names import Meant, meant
from lorakit.importers.report import Imported, shown
from lorakit.importers.scripts import launcher, levels, of, optimizer, others, schedule
from lorakit.importers.shared import say_family, source
from lorakit.registry import Shelf

SCRIPTS = ("train_dreambooth_lora", "train_text_to_image_lora")
MODEL = "pretrained_model_name_or_path"
CACHED = Fixed("carried", "lorakit always caches encoded text and pictures on disk, and frees the encoders")
CLASSES = Off("no pictures of the class: name captioned ones as [[data]] with trigger = ''")
HUB = Fixed("refused", "lorakit uploads nothing")
PRODIGY = Fixed("dead", "it is read with the optimizer prodigy only")

ARGUMENTS: Mapping[str, Told] = {
    "output_dir": Plain("output", text),
    "seed": Plain("seed", whole),
    "rank": Plain("lora.rank", positive),
    "lora_dropout": Plain("lora.dropout", number),
    "train_batch_size": Plain("train.batch_size", positive),
    "gradient_accumulation_steps": Plain("train.accumulation", positive),
    "gradient_checkpointing": Plain("train.gradient_checkpointing", flag),
    "learning_rate": Plain("optimizer.learning_rate", number),
    "adam_weight_decay": Plain("optimizer.weight_decay", number),
    "adam_epsilon": Plain("optimizer.epsilon", number),
    "max_grad_norm": Plain("train.max_grad_norm", number),
    "resolution": Plain("train.resolution", positive),
    "checkpointing_steps": Plain("save.every", whole),
    "checkpoints_total_limit": Plain("save.keep", positive),
    "cache_latents": CACHED,
    "offload": CACHED,
    "center_crop": Fixed("carried", "pictures are put into buckets of their shape, and cut in the middle"),
    "random_flip": Off("pictures are not mirrored; a mirrored face is another one"),
    "train_text_encoder_ti": Off("no words are taught by inversion"),
    "with_prior_preservation": CLASSES,
    "prior_loss_weight": Fixed("dead", "it is read with with_prior_preservation only"),
    "num_class_images": Fixed("dead", "it is read with with_prior_preservation only"),
    "sample_batch_size": Fixed("dead", "it is read with with_prior_preservation only"),
    "class_data_dir": CLASSES,
    "class_prompt": CLASSES,
    "scale_lr": Off("the rate is taken as it is"),
    "lr_num_cycles": Off("no restarts", (1,)),
    "lr_power": Fixed("dead", "it is read with polynomial only"),
    "mode_scale": Fixed("dead", "it is read with weighting_scheme mode only"),
    "snr_gamma": Off("another weight of the loss; here every noise level counts as the objective says"),
    "num_validation_images": Fixed("refused", "one picture for each prompt"),
    "skip_final_inference": Fixed("refused", "say sampling.strengths = [] to draw nothing at the end"),
    "max_sequence_length": Fixed("refused", "captions are cut where the family's text encoder cuts them"),
    "revision": Off("the newest revision is taken"),
    "variant": Off("weights are read in the number format of train.precision"),
    "allow_tf32": Fixed("refused", "it changes speed, no result that counts"),
    "dataloader_num_workers": Fixed("refused", "it changes speed, no result"),
    "enable_xformers_memory_efficient_attention": Fixed("refused", "attention is torch's own"),
    "enable_npu_flash_attention": Fixed("refused", "attention is torch's own"),
    "pretrained_vae_model_name_or_path": Off("the VAE is that of the model folder (model.source)"),
    "upcast_before_saving": Plain("save.dtype", lambda value: "fp32" if flag(value) else "bf16"),
    "resume_from_checkpoint": Off("a run starts at its first update; `lorakit resume` goes on with one"),
    "push_to_hub": HUB,
    "hub_token": HUB,
    "hub_model_id": HUB,
    "report_to": Fixed("refused", "lorakit writes events.jsonl, and shows runs elsewhere with --track"),
    "logging_dir": Fixed("refused", "lorakit writes events.jsonl, and shows runs elsewhere with --track"),
    "local_rank": Fixed("dead", "one GPU"),
    "cache_dir": Fixed("refused", "downloads go to the hub's usual cache (HF_HOME)"),
    "aspect_ratio_buckets": Fixed("refused", "lorakit makes its buckets itself"),
    "do_fp8_training": Off("the base is quantized by quantization.name"),
    "bnb_quantization_config_path": Off("the base is quantized by quantization.name"),
    "prodigy_beta3": PRODIGY,
    "prodigy_decouple": PRODIGY,
    "prodigy_use_bias_correction": PRODIGY,
    "prodigy_safeguard_warmup": PRODIGY,
}


class DiffusersScripts:
    """The importer `diffusers`."""

    def recognizes(self, document: Document) -> bool:
        """A script that starts one of the examples."""
        return _training(document) is not None

    def read(
        self,
        document: Document,
        families: Shelf[Family],
        *,
        dataset: Document | None = None,
        given: Meant | None = None,
    ) -> Imported:
        """The arguments of the first example that the script starts."""
        command = _training(document)
        draft = Draft("diffusers", document.name, of(command) if command else ())
        if command is not None:
            others(draft, document.commands, command)
        name = draft.get(MODEL, text, "")
        names = [(MODEL, name), ("the script", command.script if command else "")]
        about = given or meant([(key, one) for key, one in names if one], families)
        say_family(draft, about)
        if about:
            source(draft, MODEL, about)
        else:
            draft.tell(MODEL, "refused", "no installed family is known by this name")
        _length(draft)
        _adapter(draft, about)
        optimizer(draft, "optimizer", "use_8bit_adam")
        _betas(draft)
        schedule(draft, "lr_scheduler", "lr_warmup_steps", 500, draft.setting("train.updates"))
        levels(draft, about, "weighting_scheme", "logit_mean", "logit_std")
        launcher(draft)
        trained = draft.get("train_text_encoder", flag, False)
        text_encoder(draft, about, "train_text_encoder", trained=trained, rate="text_encoder_lr", usual=5e-6)
        told(draft, about, "guidance_scale", 3.5)
        weighted(draft, about, ("snr_gamma",), "noise_offset")
        _data(draft)
        _previews(draft)
        tell_all(draft, ARGUMENTS)
        _defaults(draft)
        return draft.finish()


def _training(document: Document) -> Command | None:
    return next((command for command in document.commands if command.script.startswith(SCRIPTS)), None)


def _length(draft: Draft) -> None:
    if draft.has("max_train_steps"):
        draft.put("max_train_steps", "train.updates", draft.get("max_train_steps", positive, 1))
        draft.tell("num_train_epochs", "dead", "max_train_steps counts")
    if draft.setting("train.updates") is None:
        draft.settle("num_train_epochs", "train.epochs", draft.get("num_train_epochs", number, 1.0))


def _adapter(draft: Draft, about: Meant | None) -> None:
    if about is not None and not about.flows:
        rank = float(draft.get("rank", positive, 4))
        draft.settle("lora_alpha", "lora.alpha", rank, "the example sets alpha to the rank")
    else:
        draft.settle("lora_alpha", "lora.alpha", draft.get("lora_alpha", number, 4.0))
    layers = draft.get("lora_layers", text, "")
    if layers:
        named = [one.strip() for one in layers.split(",") if one.strip()]
        draft.put("lora_layers", "lora.targets", named)
    else:
        draft.remark(
            "lora_layers", "the example adapts layers of its own choice; here the family's usual, or lora.targets"
        )


def _betas(draft: Draft) -> None:
    betas = [draft.get("adam_beta1", number, 0.9), draft.get("adam_beta2", number, 0.999)]
    if draft.has("adam_beta1") or draft.has("adam_beta2"):
        draft.put("", "optimizer.betas", betas)
        for key in ("adam_beta1", "adam_beta2"):
            draft.tell(key, "carried", "", f"optimizer.betas = {shown(betas)}")


def _data(draft: Draft) -> None:
    """One folder, whose pictures all have the instance prompt for a caption."""
    entry = Entry(draft, "")
    for key in ("dataset_name", "dataset_config_name", "train_data_dir"):
        if draft.has(key):
            draft.tell(key, "refused", "hub datasets are not read: put pictures and captions in a folder (data.folder)")
    draft.tell("image_column", "dead", "it is read with dataset_name only")
    draft.tell("caption_column", "dead", "it is read with dataset_name only")
    draft.tell("cond_image_column", "refused", "put references in a folder (data.references)")
    prompt = draft.get("instance_prompt", text, "")
    why = "the caption of every picture, as the trigger alone"
    if prompt and draft.put("instance_prompt", "trigger", prompt, why):
        entry.table["captions"] = "none"
    folder = draft.get("instance_data_dir", text, "")
    if folder and keep(draft, entry, "instance_data_dir", folder):
        entry.put("repeats", "repeats", draft.get("repeats", positive, 1))
        if not draft.has("repeats"):
            entry.table["repeats"] = 1
    draft.tell("repeats", "refused", "without a folder there is nothing to repeat")


def _previews(draft: Draft) -> None:
    prompt = draft.get("validation_prompt", text, "")
    last = draft.get("final_validation_prompt", text, "")
    if prompt:
        draft.put("validation_prompt", "sampling.prompts", [prompt])
        epochs = draft.get("validation_epochs", positive, 50)
        why = f"every epoch; there is no every {epochs} epochs" if epochs > 1 else ""
        draft.settle("validation_epochs", "sampling.every", "epoch", why)
        draft.tell("final_validation_prompt", "dead", "validation_prompt counts")
        return
    if last:
        draft.put("final_validation_prompt", "sampling.prompts", [last])
    draft.tell("validation_epochs", "dead", "it is read with validation_prompt only")
    draft.unsaid("validation_prompt", "sampling.every", 0, "no previews during training")


def _defaults(draft: Draft) -> None:
    """What the examples do where their arguments are silent, where lorakit would do something else."""
    for key, setting, value in (
        ("rank", "lora.rank", 4),
        ("resolution", "train.resolution", 512),
        ("train_batch_size", "train.batch_size", 4),
        ("gradient_checkpointing", "train.gradient_checkpointing", False),
        ("learning_rate", "optimizer.learning_rate", 1e-4),
        ("checkpointing_steps", "save.every", 500),
        ("quantization", "quantization.name", "none"),
        ("caption dropout", "train.caption_dropout", 0.0),
        ("upcast_before_saving", "save.dtype", "bf16" if draft.setting("train.precision") == "bf16" else "fp32"),
    ):
        draft.unsaid(key, setting, value)
    draft.unsaid("checkpoints_total_limit", "save.keep", 1000, "all are kept there")

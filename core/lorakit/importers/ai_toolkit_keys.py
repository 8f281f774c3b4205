"""The keys of an ai-toolkit configuration that stand for themselves.

What its code reads was looked up at its state of August 2026 (toolkit/config_modules.py and what uses it).
"""

from __future__ import annotations

from collections.abc import Mapping

from lorakit.importers.draft import flag, number, positive, text, whole
from lorakit.importers.keys import Fixed, Off, Plain, Told

CACHED = Fixed("carried", "lorakit always caches encoded text and pictures on disk, and frees the encoders")
SPEED = Fixed("refused", "how pictures are read ahead; it changes no result")
LOGS = Fixed("refused", "lorakit writes events.jsonl, and shows runs elsewhere with --track")
HUB = Fixed("refused", "lorakit uploads nothing")
ATTENTION = Fixed("refused", "attention is torch's own, which picks the fastest kernel that there is")
STYLE = Off("another kind of loss or noise; here the plain squared error of the objective is taught")
KEPT = Off("lorakit has no such memory saving; see what `lorakit plan` says of the card")

PROCESS: Mapping[str, Told] = {
    "job": Fixed("carried", "lorakit trains; there is nothing to choose"),
    "type": Off("plain LoRA training instead", ("sd_trainer", "diffusion_trainer", "ui_trainer")),
    "device": Fixed("dead", "ai-toolkit takes the device from accelerate; lorakit takes a GPU where there is one"),
    "trigger_word": Plain("trigger", text),
    "training_seed": Plain("seed", whole),
    "log_dir": LOGS,
    "logging.*": LOGS,
    "performance_log_every": LOGS,
    "sqlite_db_path": LOGS,
    "torch_profiler": LOGS,
    "meta.*": Fixed("refused", "what the file says of its making is written by lorakit itself"),
    "adapter.*": Off("lorakit teaches LoRA adapters only"),
    "embedding.*": Off("lorakit teaches LoRA adapters only"),
    "decorator.*": Off("lorakit teaches LoRA adapters only"),
    "slider.*": Off("lorakit teaches no sliders"),
    "network.dropout": Plain("lora.dropout", number),
    "network.transformer_only": Fixed("carried", "adapters sit inside the repeated blocks, always"),
    "network.conv": Off("no adapters on convolutions; linear layers only"),
    "network.conv_alpha": Off("no adapters on convolutions; linear layers only"),
    "network.lokr_full_rank": Fixed("dead", "it is read for the type lokr only"),
    "network.lokr_factor": Fixed("dead", "it is read for the type lokr only"),
    "network.old_lokr_format": Fixed("dead", "it is read for the type lokr only"),
    "network.split_multistage_loras": Fixed("dead", "it is read for video models of two stages only"),
    "network.layer_offloading": KEPT,
    "network.all_layers": Off("norms and embeddings are not taught"),
    "network.pretrained_lora_path": Off("a run starts from a new adapter"),
    "network.network_kwargs.*": Off("layers are chosen by lora.targets, the ends of their names"),
    "save.save_format": Off("one layout, which diffusers and ComfyUI both read", ("safetensors", "diffusers")),
    "save.push_to_hub": HUB,
    "save.hf_repo_id": HUB,
    "save.hf_private": HUB,
    "save.max_step_saves_to_keep": Plain("save.keep", positive),
}

TRAIN: Mapping[str, Told] = {
    "train.batch_size": Plain("train.batch_size", positive),
    "train.gradient_checkpointing": Plain("train.gradient_checkpointing", flag),
    "train.max_grad_norm": Plain("train.max_grad_norm", number),
    "train.unet_lr": Fixed("dead", "ai-toolkit gives train.lr to the adapter whatever this says"),
    "train.text_encoder_lr": Fixed("dead", "ai-toolkit gives train.lr to the adapter whatever this says"),
    "train.refiner_lr": Fixed("dead", "there is no refiner to teach"),
    "train.embedding_lr": Fixed("dead", "there is no embedding to teach"),
    "train.adapter_lr": Fixed("dead", "there is no such adapter to teach"),
    "train.train_turbo": STYLE,
    "train.show_turbo_outputs": STYLE,
    "train.train_refiner": Fixed("dead", "there is no refiner to teach"),
    "train.num_train_timesteps": Off("noise levels are continuous here", (1000,)),
    "train.min_denoising_steps": Off("noise levels are drawn over their whole range", (0,)),
    "train.max_denoising_steps": Off("noise levels are drawn over their whole range", (999, 1000)),
    "train.content_or_style": Off("noise levels are drawn as scheduler.timesteps says", ("balanced",)),
    "train.content_or_style_reg": Fixed("dead", "ai-toolkit reads content_or_style in its place"),
    "train.loss_type": Off("the loss is the mean squared error", ("mse",)),
    "train.loss_target": Off("the loss is that of the objective", ("noise",)),
    "train.noise_multiplier": Off("noise is not scaled", (1,)),
    "train.target_noise_multiplier": Off("noise is not scaled", (1,)),
    "train.latent_multiplier": Off("latents are not scaled", (1,)),
    "train.noisy_latent_multiplier": Off("latents are not scaled", (1,)),
    "train.img_multiplier": Off("pictures are not scaled", (1,)),
    "train.reg_weight": Off("every picture counts the same", (1,)),
    "train.cfg_scale": Off("the objective is taught without guidance", (1,)),
    "train.pred_scaler": Off("predictions are not scaled", (1,)),
    "train.optimal_noise_pairing_samples": Off("noise is drawn once for each pass", (1,)),
    "train.attention_backend": ATTENTION,
    "train.xformers": ATTENTION,
    "train.sdp": Fixed("carried", "attention is torch's own, always"),
    "train.cache_text_embeddings": CACHED,
    "train.skip_first_sample": Fixed("carried", "no preview is drawn before the first update"),
    "train.force_first_sample": Off("no preview before the first update; strength 0 at the end shows the base"),
    "train.start_step": Off("a run starts at its first update; `lorakit resume` goes on with one"),
    "train.switch_boundary_every": Fixed("dead", "it is read for video models of two stages only"),
    "train.unload_text_encoder": Off(
        "ai-toolkit then teaches on the trigger alone, whatever captions say; here captions are cached and taught"
    ),
    "train.diff_output_preservation": Off("add pictures of the class as [[data]] with trigger = '' instead"),
    "train.diff_output_preservation_multiplier": Fixed("dead", "it is read with diff_output_preservation only"),
    "train.diff_output_preservation_class": Off("no preservation of the class"),
    "train.blank_prompt_preservation": Off("no preservation of the empty prompt"),
    "train.blank_prompt_preservation_multiplier": Fixed("dead", "it is read with blank_prompt_preservation only"),
    "train.validation_config.*": Off("no validation loss"),
    "train.merge_network_on_save": Off("the base is never changed"),
    "train.merge_network_on_save_strength": Fixed("dead", "it is read with merge_network_on_save only"),
    "train.bypass_guidance_embedding": Off("the guidance that the model is told in training is the family's own"),
    "train.do_paramiter_swapping": KEPT,
    "train.single_item_batching": Off("pictures of one shape share a batch"),
    **{
        f"train.{key}": STYLE
        for key in (
            "min_snr_gamma", "snr_gamma", "learnable_snr_gos", "noise_offset", "weight_jitter", "random_noise_shift",
            "random_noise_multiplier", "do_signal_correction_noise", "do_batch_noise_correction",
            "dynamic_noise_offset",
            "do_signal_amplification", "blended_blur_noise", "force_consistent_noise", "match_noise_norm", "do_cfg",
            "do_random_cfg", "do_fft_loss", "t0_loss_target", "max_loss", "target_norm_std", "linear_timesteps",
            "linear_timesteps2", "inverted_mask_prior", "do_differential_guidance", "do_guidance_loss", "free_u",
            "correct_pred_norm", "do_prior_divergence", "prompt_saturation_chance", "adaptive_scaling_factor",
            "prompt_dropout_prob", "standardize_images", "standardize_latents", "short_and_long_captions",
            "diffusion_feature_extractor_path", "latent_feature_extractor_path", "do_blank_stabilization",
        )
    },
}  # fmt: skip

MODEL: Mapping[str, Told] = {
    "model.dtype": Fixed("dead", "ai-toolkit overwrites it with train.dtype"),
    "model.quantize_te": Fixed("refused", "the text encoder is run once in the training precision, and freed"),
    "model.qtype_te": Fixed("refused", "the text encoder is run once in the training precision, and freed"),
    "model.text_encoder_bits": Fixed("refused", "the text encoder is run once in the training precision, and freed"),
    "model.only_if_contains": Off("layers are chosen by lora.targets, the ends of their names"),
    "model.ignore_if_contains": Off("layers are chosen by lora.targets, the ends of their names"),
    "model.low_vram": Fixed("carried", "weights are always read and quantized block by block"),
    "model.quantize_kwargs.*": Off(
        "every linear layer inside the blocks is quantized, but for those the family spares"
    ),
    "model.layer_offloading": KEPT,
    "model.auto_memory": KEPT,
    "model.layer_offloading_transformer_percent": Fixed("dead", "it is read with layer_offloading only"),
    "model.layer_offloading_text_encoder_percent": Fixed("dead", "it is read with layer_offloading only"),
    "model.compile": Off("nothing is compiled; it changes speed, not results"),
    "model.block_compile": Off("nothing is compiled; it changes speed, not results"),
    "model.assistant_lora_path": Off("no adapter is merged into the base before it is taught"),
    "model.inference_lora_path": Off("no adapter is merged into the base for previews"),
    "model.lora_path": Off("no adapter is merged into the base before it is taught"),
    "model.extras_name_or_path": Off("text encoder and VAE are those of model.source"),
    "model.vae_path": Off("text encoder and VAE are those of model.source"),
    "model.te_name_or_path": Off("text encoder and VAE are those of model.source"),
    "model.unet_path": Off("all weights are those of model.source"),
    "model.split_model_over_gpus": Off("one GPU"),
    "model.attn_masking": Off("padding is masked where a batch has any"),
    "model.model_kwargs.*": Off(
        "how references are sized is the variant's; train.reference_resolution sets their area"
    ),
}

DATA: Mapping[str, Told] = {
    "type": Off("pictures only", ("image",)),
    "cache_latents": CACHED,
    "cache_latents_to_disk": CACHED,
    "cache_text_embeddings": CACHED,
    "cache_tensors_to_disk": CACHED,
    "cache_clip_vision_to_disk": CACHED,
    "num_workers": SPEED,
    "prefetch_factor": SPEED,
    "cache_latents_num_workers": SPEED,
    "fast_image_size": SPEED,
    "buckets": Off("pictures are always put into buckets of their shape", (True,)),
    "bucket_tolerance": Fixed("dead", "ai-toolkit overwrites it with what the model needs"),
    "shuffle_tokens": Off("captions are taught as they are written"),
    "token_dropout_rate": Off("captions are dropped whole or not at all"),
    "keep_tokens": Fixed("dead", "it is read with shuffle_tokens or token_dropout_rate only"),
    "default_caption": Off("a picture without a caption is taught with the trigger alone"),
    "random_triggers": Off("one trigger for a folder"),
    "random_triggers_max": Fixed("dead", "it is read with random_triggers only"),
    "replacements": Off("captions are taught as they are written"),
    "use_short_captions": Off("captions are taught as they are written"),
    "scale": Off("pictures are brought to the training area", (1,)),
    "random_scale": Off("pictures are cut in the middle, always alike"),
    "random_crop": Off("pictures are cut in the middle, always alike"),
    "square_crop": Off("pictures keep their shape as nearly as the buckets allow"),
    "flip_x": Off("pictures are not mirrored; a mirrored face is another one"),
    "flip_y": Off("pictures are not mirrored"),
    "augments": Off("pictures are not altered"),
    "augmentations": Off("pictures are not altered"),
    "is_reg": Off("these pictures are taught like all others: every picture counts the same"),
    "prior_reg": Off("no prior is taught besides"),
    "loss_multiplier": Off("every picture counts the same; repeats show it more often", (1,)),
    "network_weight": Off("the adapter is taught at its full strength", (1,)),
    "mask_path": Off("no masks: the whole picture is taught"),
    "alpha_mask": Off("no masks: transparency is put over white"),
    "invert_mask": Off("no masks"),
    "mask_min_value": Off("no masks"),
    "inpaint_path": Off("no inpainting"),
    "unconditional_path": Off("no such pairs"),
    "clip_image_path": Off("no such pictures"),
    "poi": Off("pictures are cut in the middle"),
    "full_size_control_images": Fixed("carried", "references are brought to the variant's own area"),
    "control_from_same_folder": Off("references are named: data.references or data.list"),
    "num_controls_from_same_folder": Fixed("dead", "it is read with control_from_same_folder only"),
    "control_transparent_color": Fixed("refused", "transparency is put over white"),
    "controls": Off("references are made by no preprocessor"),
    "batch_size": Off("one train.batch_size for the run"),
    "num_frames": Off("pictures, no video", (1,)),
    "fps": Fixed("dead", "it is read for videos only"),
    "shrink_video_to_frames": Fixed("dead", "it is read for videos only"),
    "do_i2v": Fixed("dead", "it is read for videos only"),
}

SAMPLE: Mapping[str, Told] = {
    "sample.sampler": Fixed("carried", "the sampler belongs to the training objective; for flow matching, Euler steps"),
    "sample.sample_steps": Plain("sampling.steps", whole),
    "sample.seed": Plain("sampling.seed", whole),
    "sample.walk_seed": Off("prompts have seeds one after another, always", (True,)),
    "sample.sample_start_step": Off("previews are drawn from the first update on"),
    "sample.network_multiplier": Off("previews are drawn at strength 1; sampling.strengths at the end", (1,)),
    "sample.guidance_rescale": Off("guidance is combined as the family's own pipeline does"),
    "sample.do_cfg_norm": Off("guidance is combined as the family's own pipeline does"),
    "sample.format": Off("previews are PNG", ("png",)),
    "sample.num_frames": Off("pictures, no video", (1,)),
    "sample.fps": Fixed("dead", "it is read for videos only"),
}

"""Judges of the real classes with a few narrow layers and random weights, as transformers writes them."""

from __future__ import annotations

from pathlib import Path

SIDE = 32  # pixels that they look at


def dinov2(folder: Path, seed: int = 0) -> Path:
    """A Dinov2Model with its preprocessor."""
    import torch
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        Dinov2Model(Dinov2Config(**size)).save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": SIDE, "width": SIDE}, do_convert_rgb=True
    ).save_pretrained(folder)
    return folder


def clip(folder: Path, seed: int = 0) -> Path:
    """A CLIPModel with its preprocessor and a tokenizer that spells."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    known = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(known) - 2, "eos_token_id": len(known) - 1, "pad_token_id": len(known) - 1}
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={**size, **ends, "vocab_size": len(known), "max_position_embeddings": 77},
        vision_config={**size, "image_size": SIDE, "patch_size": 8},
        projection_dim=24,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer(
        vocab={token: number for number, token in enumerate(known)}, merges=[], model_max_length=77
    ).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )
    return folder

"""What a model is told and how its loss is weighted, as far as the variant allows what a file asks for."""

from __future__ import annotations

from typing import Any

from lorakit.importers.draft import Draft, is_off, number, text
from lorakit.importers.names import Meant


def text_encoder(
    draft: Draft, about: Meant | None, key: str, *, trained: bool, rate: str = "", usual: float | None = None
) -> None:
    """Teach the text encoder where the file does and the family may; `rate` is the key of its learning rate."""
    if not trained:
        draft.put(key, "text_encoder.train", False)
        draft.tell(rate, "dead", "the text encoder is not trained")
    elif about is not None and about.family.trainable_text:
        draft.settle(key, "text_encoder.train", True)
        value = draft.get(rate, _first, usual)
        if value and rate:
            draft.settle(rate, "text_encoder.learning_rate", value)
        elif value:
            draft.put("", "text_encoder.learning_rate", value)
    else:
        why = "no text encoder of this family is trained: it is run once, and its answers are cached"
        if draft.has(key):
            draft.tell(key, "refused", why)
        else:
            draft.remark(key, f"the trainer teaches the text encoders too; {why}", "refused")
        draft.tell(rate, "refused", why)


def _first(value: Any) -> float:
    """The rate of the first text encoder, where there is one for each."""
    return number(value[0] if isinstance(value, list) and value else value)


def drawn(draft: Draft, about: Meant | None, guidance: str, negative: str) -> None:
    """Guidance of previews and what it moves away from, as far as the variant is guided."""
    if about is not None and about.model.guidance == "none":
        draft.tell(guidance, "refused", "this variant draws without guidance")
    else:
        draft.same(guidance, "sampling.guidance", number)
    leaf = draft.leaf(negative)
    if leaf is not None and leaf.value in (None, False, ""):
        draft.tell(negative, "carried", "an empty negative")
    elif about is not None and about.model.guidance != "true":
        draft.tell(negative, "refused", "this variant is not guided by a negative prompt")
    else:
        draft.same(negative, "sampling.negative", text)


def told(draft: Draft, about: Meant | None, key: str, usual: float) -> None:
    """The guidance that a model with embedded guidance is told of in training."""
    if about is not None and about.model.guidance == "embedded":
        draft.settle(key, "train.guidance", draft.get(key, number, usual))
    else:
        draft.tell(key, "dead", "this model is not told of guidance")


def weighted(draft: Draft, about: Meant | None, gammas: tuple[str, ...], offset: str) -> None:
    """Bounded signal-to-noise weights and offset noise, where the objective knows them."""
    if about is None or about.flows:
        return
    for key, setting in (*((key, "scheduler.min_snr_gamma") for key in gammas), (offset, "scheduler.noise_offset")):
        leaf = draft.leaf(key)
        if leaf is not None and not is_off(leaf.value):
            draft.same(key, setting, number)

"""Previews as DINOv2 or CLIP sees them: how like they are to the training pictures, and to their prompts.

As in DreamBooth: the mean cosine over pairs of a drawn picture and a real one, of DINOv2's class token or of CLIP's
projected picture, and the cosine of CLIP's projected picture and text.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from lorakit.engine.memory import device_for
from lorakit.engine.pixels import to_rgb
from lorakit.engine.sharing import PROCESS, loading
from lorakit.engine.weights import Weights
from lorakit.errors import LorakitError, ModelError
from lorakit.judges import CLIP, FIX, WHERE, Answer, Judge, Question

AT_ONCE = 8  # pictures that go through the model together
LARGEST = 4096  # pixels a side to which a preprocessor may resize; the largest published judges take 518


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its device, what prepares pictures for it, and what prepares texts, where it reads them."""

    model: Any
    processor: Any
    tokenizer: Any
    device: torch.device


def answers(judge: Judge, questions: Sequence[Question], device: str = "auto") -> list[Answer]:
    """An answer to each question, in fp32; ModelError where the folder's files are not what they seem."""
    with _judging(judge):
        with loading():
            loaded = _loaded(judge, device_for(device))
        with PROCESS.shared(), torch.no_grad():
            return _answers(loaded, questions)


def _answers(loaded: Loaded, questions: Sequence[Question]) -> list[Answer]:
    wanted = dict.fromkeys(path for one in questions for path in (one.picture, *one.like))
    seen = dict(_seen(loaded, wanted))
    means = {like: _mean(seen[path] for path in like if path in seen) for like in {one.like for one in questions}}
    prompts = dict.fromkeys(one.prompt for one in questions if one.prompt) if loaded.tokenizer else ()
    read = {prompt: _read(loaded, prompt) for prompt in prompts}
    return [_answer(seen.get(one.picture), means[one.like], read.get(one.prompt)) for one in questions]


def _answer(picture: Tensor | None, mean: Tensor | None, read: tuple[Tensor, int] | None) -> Answer:
    if picture is None:
        return Answer()
    image = None if mean is None else float(picture @ mean)
    return Answer(image, None if read is None else float(picture @ read[0]), read[1] if read else 0)


def _mean(vectors: Iterable[Tensor]) -> Tensor | None:
    """The mean of unit vectors: a product with it is the mean of the cosines with each; None where there are none."""
    found = list(vectors)
    return torch.stack(found).mean(0) if found else None


def _seen(loaded: Loaded, paths: Iterable[Path]) -> Iterator[tuple[Path, Tensor]]:
    """Each picture that can be decoded, with its embedding of length 1, in double precision on the CPU."""
    opened = ((path, image) for path in paths if (image := _opened(path)) is not None)
    while some := list(islice(opened, AT_ONCE)):
        pixels = loaded.processor(images=[image for _, image in some], return_tensors="pt")["pixel_values"]
        made = loaded.model.get_image_features if loaded.tokenizer else loaded.model
        vectors = _unit(made(pixel_values=pixels.to(loaded.device, torch.float32)))
        yield from zip((path for path, _ in some), vectors, strict=True)


def _read(loaded: Loaded, prompt: str) -> tuple[Tensor, int]:
    """The embedding of as much of a prompt as the model reads, and how many tokens all of it has."""
    most = loaded.model.config.text_config.max_position_embeddings
    whole = loaded.tokenizer(prompt, verbose=False)["input_ids"]  # it would warn of what is counted here
    ids = loaded.tokenizer(prompt, truncation=True, max_length=most, return_tensors="pt").to(loaded.device)
    found = loaded.model.get_text_features(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
    return _unit(found)[0], len(whole)


def _unit(output: Any) -> Tensor:
    """Embeddings (N, C) of length 1; older transformers gives CLIP's as they are, newer in the pooler's place."""
    held: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    vectors = torch.nn.functional.normalize(held.double().cpu(), dim=-1)
    if not torch.isfinite(vectors).all():
        raise ValueError("its answers are not finite numbers")
    return vectors


def _opened(path: Path) -> Image.Image | None:
    """The picture upright and in RGB; None where it cannot be decoded."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            return to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _loaded(judge: Judge, device: torch.device) -> Loaded:
    from transformers import BitImageProcessorPil, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, Dinov2Model

    Weights(judge.folder, f"model of --judge {judge.folder}")  # whole and sound, before a library sees it
    clip = judge.kind == CLIP
    model = _model(CLIPModel if clip else Dinov2Model, judge.folder).to(device).eval()
    prepared = CLIPImageProcessorPil if clip else BitImageProcessorPil
    processor = prepared.from_pretrained(judge.folder, local_files_only=True)
    _check_sizes(processor)
    tokenizer = CLIPTokenizer.from_pretrained(judge.folder, local_files_only=True) if clip else None
    return Loaded(model, processor, tokenizer, device)


def _model(kind: Callable[..., Any], folder: Path) -> Any:
    """The model with every weight from the folder; nothing is fetched, and no code of the folder is run."""
    model, told = kind.from_pretrained(  # type: ignore[attr-defined]
        folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation="sdpa",  # whatever config.json names: it might be a kernel that is fetched
        dtype=torch.float32,
        output_loading_info=True,
    )
    unmade = sorted(map(str, (*told["missing_keys"], *told["mismatched_keys"])))
    if unmade:
        raise ValueError(f"its safetensors file lacks {unmade[0]}, or has it in another shape")
    return model


def _check_sizes(processor: Any) -> None:
    """Refuse sides that no judge has: a picture of them would take all memory."""
    told = [*dict(processor.size or {}).values(), *dict(processor.crop_size or {}).values()]
    if any(side is not None and not 0 < side <= LARGEST for side in told):
        raise ValueError(f"its preprocessor asks for pictures of {max(filter(None, told))} pixels a side")


@contextmanager
def _judging(judge: Judge) -> Iterator[None]:
    """Whatever the libraries raise over a folder that somebody else made is a ModelError."""
    try:
        yield
    except LorakitError:
        raise
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(
            f"the judge {judge.folder} cannot be used",
            where=WHERE,
            why=f"{type(error).__name__}: {said[:300]}",
            fix=FIX,
        ) from error

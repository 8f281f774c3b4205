"""Judges of pictures: local folders of DINOv2 or CLIP, known and checked by their files before anything is loaded."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit import jsontext
from lorakit.errors import ModelError

DINOV2, CLIP = "dinov2", "clip"  # as config.json calls them
TITLES = {DINOV2: "DINOv2", CLIP: "CLIP"}
CONFIG, WEIGHTS = "config.json", "*.safetensors"
PICTURES = ("preprocessor_config.json", "processor_config.json")  # either says how pictures are prepared
TOKENIZER = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either set of files is one
COUNTED = ("*.json", "*.txt", WEIGHTS)  # the files that answers can depend on
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENS = 77  # that the published CLIP models read of a prompt, the two marks around it among them
WHERE = "--judge"
FIX = "Name a folder that `save_pretrained` of transformers wrote, with the model and its processor."


@dataclass(frozen=True, slots=True)
class Judge:
    """A folder; `kind` is one of TITLES, `digest` one of the content of its files, `name` tells it from the others.

    `reads` is how many tokens of a prompt it reads, 0 where it reads none.
    """

    folder: Path
    kind: str
    digest: str
    name: str
    reads: int = 0

    @property
    def title(self) -> str:
        """What it is called in sentences."""
        return f"{TITLES[self.kind]} ({self.name})"


@dataclass(frozen=True, slots=True)
class Question:
    """A picture, the prompt that drew it, and the pictures that it should be like; empty where there is nothing."""

    picture: Path
    prompt: str = ""
    like: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Cosines: to the pictures that it should be like, in the mean, and to the prompt of so many `tokens`."""

    image: float | None = None
    text: float | None = None
    tokens: int = 0


def read(folders: Sequence[Path]) -> tuple[Judge, ...]:
    """The judges in order, each once; ModelError where a folder is none that can be used."""
    found: dict[str, Judge] = {}
    for folder in folders:
        one = _judge(folder)
        found.setdefault(one.digest, one)
    names = Counter(one.name for one in found.values())
    return tuple(
        replace(one, name=f"{one.name}, {one.digest[:8]}") if names[one.name] > 1 else one for one in found.values()
    )


def _judge(given: Path) -> Judge:
    try:
        folder = given.expanduser()
        if not folder.is_dir():
            what = f"{folder} is a file, not a folder" if folder.is_file() else f"there is no folder {folder}"
            raise ModelError(what, where=WHERE, why="judges are local, and nothing is downloaded", fix=FIX)
        config = _config(folder)
        kind = _kind(folder, config)
        if lack := _lack(folder, kind):
            raise ModelError(f"the {TITLES[kind]} model in {folder} has no {lack}", where=WHERE, fix=FIX)
        return Judge(folder, kind, _digest(folder), folder.resolve().name, _reads(config) if kind == CLIP else 0)
    except (OSError, RuntimeError) as error:  # the second where `~name` names nobody
        raise ModelError(f"the judge {given} cannot be read", where=WHERE, why=str(error)) from error


def _config(folder: Path) -> Mapping[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise ModelError(f"{folder} holds no model: it has no {CONFIG}", where=WHERE, fix=FIX)
    try:
        return jsontext.table(file.read_bytes())
    except ValueError as error:
        raise ModelError(f"{file} cannot be read", where=WHERE, why=str(error), fix=FIX) from error


def _reads(config: Mapping[str, Any]) -> int:
    """Tokens that its text model has places for; the published models have so many, and do not all say so."""
    text = config.get("text_config")
    told = text.get("max_position_embeddings") if isinstance(text, dict) else None
    return told if type(told) is int and told > 0 else TOKENS


def _kind(folder: Path, config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in TITLES:
        called = f"the model type {str(kind)[:40]!r}" if kind else "no model type"
        raise ModelError(
            f"{folder} is neither a DINOv2 nor a CLIP model",
            where=WHERE,
            why=f"its {CONFIG} names {called}, and `dinov2` and `clip` can judge",
        )
    return kind


def _lack(folder: Path, kind: str) -> str:
    """The first thing that is not there; empty where the folder is whole, as far as names tell."""
    if not any(folder.glob(WEIGHTS)):
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        if pickled:
            return f"safetensors file, only {pickled[0]}: pickled weights can run code, so lorakit does not read them"
        return "safetensors file"
    if not any((folder / name).is_file() for name in PICTURES):
        return f"{PICTURES[0]}, which says how pictures are prepared for it"
    if kind == CLIP and not any(all((folder / name).is_file() for name in files) for files in TOKENIZER):
        return "tokenizer: neither tokenizer.json nor vocab.json with merges.txt"
    return ""


def _digest(folder: Path) -> str:
    """Of the names and the content of every file that answers can depend on."""
    made = hashlib.sha256()
    for file in sorted(set(_counted(folder))):
        made.update(f"{file.name}\0{digest_of(file)}\n".encode())
    return made.hexdigest()


def _counted(folder: Path) -> Iterator[Path]:
    for pattern in COUNTED:
        yield from (file for file in folder.glob(pattern) if file.is_file())


def digest_of(file: Path) -> str:
    """The SHA-256 of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

"""A run's grid: its checkpoints at strengths and guidances, for every prompt, and the list of pictures. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit import jsontext
from lorakit.changes import fixed
from lorakit.drawing import checkpoints
from lorakit.errors import ConfigError
from lorakit.family import Family
from lorakit.plan import Plan
from lorakit.words import some

FOLDER, INDEX, SHEET, PIECES = "grid", "index.json", "sheet.png", "pieces"
STRENGTHS, GUIDANCES = (0.6, 0.8, 1.0), (3.0, 3.5, 4.0)
SHOWS = ("model.", "scheduler.", "quantization.", "text_encoder.", "train.precision", "family", "variant")
"""Settings, and beginnings of settings, that every picture depends on."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One picture of a grid; `number` is its prompt's, `key` a digest of everything that it depends on."""

    update: int
    strength: float
    guidance: float
    number: int
    prompt: str
    seed: int
    key: str

    @property
    def name(self) -> str:
        """Its file in the folder of pieces."""
        return f"{self.update:06d}-{self.number}-s{self.strength:g}-g{self.guidance:g}-{self.key[:12]}.png"

    def row(self) -> dict[str, Any]:
        """What the list says of it; the path is from the run's folder."""
        return {
            "update": self.update,
            "strength": self.strength,
            "guidance": self.guidance,
            "prompt": self.prompt,
            "seed": self.seed,
            "path": f"{FOLDER}/{PIECES}/{self.name}",
            "key": self.key,
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a grid shows: LoRA files by update, strengths, guidances."""

    files: Mapping[int, Path]
    strengths: Sequence[float]
    guidances: Sequence[float]


def wanted(run: Path, updates: Sequence[int], strengths: Sequence[float]) -> Wanted:
    """The run's checkpoints, all or those named, at these strengths or the usual ones."""
    files = checkpoints(run)
    lost = [str(one) for one in updates if one not in files]
    if lost:
        raise ConfigError(
            f"the run {run} has no checkpoint {', '.join(lost)}",
            where="--checkpoint",
            fix=f"There are {some([str(one) for one in files], 20)}.",
        )
    chosen = {update: files[update] for update in sorted(set(updates))} if updates else files
    return Wanted(chosen, tuple(dict.fromkeys(strengths)) or STRENGTHS, ())


def guidances(plan: Plan, family: Family, asked: Sequence[float]) -> tuple[tuple[float, ...], str]:
    """(the columns' guidances, a word to a person): a variant that is not guided has one column."""
    if family.variants[plan.settings.variant].guidance == "none":
        return (
            1.0,
        ), f"{family.title} {plan.settings.variant} draws without guidance: there is one column for each strength"
    return tuple(dict.fromkeys(asked)) or GUIDANCES, ""


def pieces(plan: Plan, want: Wanted, digests: Mapping[int, str]) -> list[Piece]:
    """Every picture, in the order in which they are drawn; `digests` are of the files by update."""
    sampling, shared = plan.settings.sampling, _shared(plan)
    seen = [[_digest(Path(path)) for path in paths] for paths in sampling.references]
    return [
        Piece(
            update,
            strength,
            guidance,
            number,
            prompt,
            sampling.seed + number,
            _key(shared, digests[update], strength, guidance, prompt, sampling.seed + number, seen[number]),
        )
        for update in want.files
        for strength in want.strengths
        for guidance in want.guidances
        for number, prompt in enumerate(sampling.prompts)
    ]


ROW = {"update": int, "strength": float, "guidance": float, "prompt": str, "seed": int, "path": str, "key": str}


def known(run: Path) -> list[dict[str, Any]]:
    """The list of what was drawn before; nothing where there is none, or none that can be read."""
    try:
        told = jsontext.parse((run / FOLDER / INDEX).read_bytes())
    except (OSError, ValueError):
        return []
    rows = told if isinstance(told, list) else []
    return [
        one for one in rows if isinstance(one, dict) and all(type(one.get(name)) is kind for name, kind in ROW.items())
    ]


def listed(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The list as it is written."""
    ordered = sorted(rows, key=lambda one: [one["update"], one["prompt"], one["strength"], one["guidance"], one["key"]])
    return (json.dumps(ordered, indent=1, ensure_ascii=False) + "\n").encode()


def _shared(plan: Plan) -> dict[str, Any]:
    """What all pictures of a grid depend on alike."""
    settings = plan.settings
    own = {name: value for name, value in fixed(plan).items() if name.startswith(SHOWS)}
    sampling = settings.sampling.model_dump(mode="json", include={"negative", "steps", "shift", "width", "height"})
    return {"lorakit": plan.lorakit, **own, **sampling}


def _digest(file: Path) -> str:
    """The content of a reference, or its path where it cannot be read, which is told when it is drawn from."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return str(file)


def _key(shared: Mapping[str, Any], *own: Any) -> str:
    return hashlib.sha256(json.dumps([shared, *own], sort_keys=True, default=str).encode()).hexdigest()


def table(found: Sequence[Piece], number: int) -> Iterator[tuple[int, list[Piece]]]:
    """The rows of one prompt: a checkpoint and its pictures in the order of the columns."""
    for update in dict.fromkeys(one.update for one in found):
        yield update, [one for one in found if one.update == update and one.number == number]

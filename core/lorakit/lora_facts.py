"""What a LoRA file holds, read from its header: its layers, ranks and scales, its layout, and whose it is. No torch."""

from __future__ import annotations

import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import BinaryIO

from lorakit import jsontext
from lorakit.errors import ModelError
from lorakit.family import Family
from lorakit.layer_names import NUMBER, Names, kind, recognised, variants
from lorakit.single_file import Contents, Stored, contents
from lorakit.words import count, some

HALF = re.compile(
    r"^(?P<layer>.+)[._](?:"
    r"(?P<down>lora_A|lora_down|lora\.down|lora_linear_layer\.down)|(?P<up>lora_B|lora_up|lora\.up|lora_linear_layer\.up)"
    r")(?:\.default)?(?:\.weight)?$"
)
ALPHA = re.compile(r"^(?P<layer>.+)\.alpha$")
SCALARS = {"F64": ("<d", 8), "F32": ("<f", 4), "F16": ("<e", 2), "BF16": ("<f", 2)}
"""How a number lies in a file, and in how many bytes; one in bf16 is the upper half of one in fp32."""
ADAPTER = "lora_adapter_metadata"
"""Where diffusers writes peft's configuration, whose scale it applies and nobody else does."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One pair of halves as a file has it: A (rank, inputs), B (outputs, rank), by the names of their tensors.

    `layers` are what it is for in diffusers' names, none where no family knows it. `scale` is what the file multiplies
    B A with: alpha over the rank, or what peft's configuration says.
    """

    name: str
    down: str
    up: str
    rank: int
    inputs: int
    outputs: int
    alpha: float | None
    scale: float
    layers: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What layers of other blocks have in common with it."""
        return "+".join(self.kinds) or NUMBER.sub("#", self.name)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the layers that it is for."""
        return tuple(map(kind, self.layers))

    @property
    def component(self) -> str:
        """The part of the model that it stands on; empty where no family knows it."""
        return self.layers[0].partition(".")[0] if self.layers else ""


@dataclass(frozen=True, slots=True)
class Facts:
    """A LoRA file; `names` are the families that know its layers, of which there is one where it is certain.

    `others` counts tensors that are no pair of halves, by the ends of their names; `notes` are for a person.
    """

    file: Path
    size: int
    names: Sequence[Names]
    layout: str
    layers: Sequence[Layer]
    dtypes: Mapping[str, int]
    others: Mapping[str, int]
    metadata: Mapping[str, str]
    notes: Sequence[str] = field(default=())

    @property
    def family(self) -> Family | None:
        """The family that it is for, where that is certain."""
        return self.names[0].family if len(self.names) == 1 else None

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that it says it is for."""
        return variants(self.family, self.metadata) if self.family else ()

    @property
    def unknown(self) -> list[str]:
        """The layers that its family does not know."""
        return [one.name for one in self.layers if not one.layers]


def read(file: Path, families: Mapping[str, Family], family: str | None = None) -> Facts:
    """What the file holds, by the families registered or by the one named; ModelError where it is no LoRA."""
    held = _contents(file)
    pairs, others = _pairs(held)
    if not pairs:
        raise ModelError(
            f"{file} holds no LoRA layers",
            why=f"none of its {count(len(held.header), 'tensor')} is half of one{_first(held.header)}",
            fix="Name a LoRA file; a whole model is named with --source.",
        )
    asked = {family: families[family]} if family else families
    names = recognised(asked, pairs, held.metadata)
    if family and not names:
        raise _of_another(file, families, family, recognised(families, pairs, held.metadata))
    layers, layout = _layers(file, held, pairs, names[0] if names else None)
    facts = Facts(
        file=file,
        size=file.stat().st_size,
        names=names,
        layout=layout,
        layers=layers,
        dtypes=Counter(held.header[one.up].dtype for one in layers),
        others=others,
        metadata=held.metadata,
    )
    return replace(facts, notes=tuple(_notes(facts)))


def _layers(
    file: Path, held: Contents, pairs: Mapping[str, tuple[str, str]], names: Names | None
) -> tuple[list[Layer], str]:
    """The pairs as layers, and the layout that most of their names are of."""
    configured, found, layouts = Configured.of(held.metadata), list[Layer](), Counter[str]()
    with file.open("rb") as opened:
        for name, (down, up) in pairs.items():
            inputs, outputs, rank = _sizes(file, held.header, down, up)
            place = names.read(name) if names else None
            layers = place.layers if place else ()
            layouts.update([place.layout] if place else [])
            alpha = _scalar(opened, held.header, f"{name}.alpha")
            scale = configured.scale(layers, rank) if alpha is None else alpha / rank
            found.append(Layer(name, down, up, rank, inputs, outputs, alpha, scale, layers))
    return found, layouts.most_common(1)[0][0] if layouts else _guessed(found[0].name)


def _of_another(file: Path, families: Mapping[str, Family], asked: str, known: Sequence[Names]) -> ModelError:
    """That the file is for another family than the one asked for."""
    others = " or ".join(one.family.title for one in known)
    return ModelError(
        f"the LoRA file {file} is not for {families[asked].title}",
        why=f"its layers are those of {others}" if others else "its layers are those of no installed family",
        fix="Leave --family out, or name another file.",
    )


def _first(header: Mapping[str, Stored]) -> str:
    return f"; there is {min(header)}" if header else ""


def _contents(file: Path) -> Contents:
    if not file.is_file():
        raise ModelError(
            f"there is no file {file}" if not file.exists() else f"{file} is a folder, not a LoRA file",
            fix="Check the path." if not file.exists() else "Name a .safetensors file in it.",
        )
    return contents(file, what="LoRA")


def _pairs(held: Contents) -> tuple[dict[str, tuple[str, str]], dict[str, int]]:
    """(the names of both halves' tensors by layer, how many other tensors there are by the ends of their names)."""
    downs, ups, others = dict[str, str](), dict[str, str](), list[str]()
    for name in held.header:
        found = HALF.match(name)
        if found:
            (downs if found["down"] else ups)[found["layer"]] = name
        else:
            others.append(name)
    pairs = {layer: (downs[layer], ups[layer]) for layer in downs if layer in ups}
    alone = [name for halves in (downs, ups) for layer, name in halves.items() if layer not in pairs]
    more = [name for name in others if not ((found := ALPHA.match(name)) and found["layer"] in pairs)]
    ends = Counter(name.removesuffix(".weight").rpartition(".")[2] for name in more)
    return pairs, {**ends, **({"halves without the other": len(alone)} if alone else {})}


def _sizes(file: Path, header: Mapping[str, Stored], down: str, up: str) -> tuple[int, int, int]:
    """(inputs, outputs, rank) of a pair; of a convolution, inputs times the kernel."""
    first, second = header[down].shape, header[up].shape
    if len(first) < 2 or len(second) < 2 or first[0] != second[1] or not all((*first, *second)):
        raise ModelError(
            f"the LoRA file {file} is broken",
            why=f"{down} of {list(first)} and {up} of {list(second)} are no pair of halves",
            fix="Copy or download it again.",
        )
    inputs, outputs = first[1], second[0]
    for side in first[2:]:
        inputs *= side
    return inputs, outputs, first[0]


def _scalar(file: BinaryIO, header: Mapping[str, Stored], name: str) -> float | None:
    """A single number of the file; None where there is none of the name."""
    stored = header.get(name)
    if stored is None or stored.dtype not in SCALARS or stored.shape not in ((), (1,)):
        return None
    form, size = SCALARS[stored.dtype]
    file.seek(stored.begin)
    data = file.read(size)
    whole = data if stored.dtype != "BF16" else b"\0\0" + data
    return float(struct.unpack(form, whole)[0]) if len(data) == size else None


@dataclass(frozen=True, slots=True)
class Configured:
    """peft's configuration in the metadata, as diffusers reads it: an alpha for each component, and for some layers."""

    table: Mapping[str, object]

    @staticmethod
    def of(metadata: Mapping[str, str]) -> Configured:
        """What the metadata says; nothing where that is no table."""
        try:
            return Configured(jsontext.table(metadata.get(ADAPTER, "{}")))
        except ValueError:
            return Configured({})

    def scale(self, layers: Sequence[str], rank: int) -> float:
        """What diffusers multiplies B A of a layer with; 1 where nothing is said."""
        component, _, inner = (layers[0] if layers else "").partition(".")
        alpha = self.table.get(f"{component}.lora_alpha")
        patterns = self.table.get(f"{component}.alpha_pattern")
        for ending, value in patterns.items() if isinstance(patterns, dict) else ():
            if inner == ending or inner.endswith(f".{ending}"):
                alpha = value
        if not isinstance(alpha, (int, float)) or not layers:
            return 1.0
        return alpha / (rank**0.5 if self.table.get(f"{component}.use_rslora") is True else rank)


def _guessed(first: str) -> str:
    """The layout of a file that no family knows, by its first layer's name."""
    starts = {"lora_": "kohya", "lycoris_": "lycoris", "base_model.model.": "peft", "diffusion_model.": "comfyui"}
    known = (layout for start, layout in starts.items() if first.startswith(start))
    return next(known, "diffusers" if first.startswith(("transformer.", "unet.", "text_encoder")) else "bare")


def _notes(facts: Facts) -> Iterator[str]:
    """What is odd about the file."""
    if not facts.names:
        yield "no installed family knows these layers"
    elif len(facts.names) > 1:
        known = " and ".join(one.family.title for one in facts.names)
        yield f"{known} have layers of these names, and the metadata does not say which is meant: say --family"
    if facts.names and facts.unknown:
        yield f"{count(len(facts.unknown), 'layer')} unknown to {facts.names[0].family.title}: {some(facts.unknown, 3)}"
    if facts.others:
        yield "tensors that are no halves of a LoRA: " + ", ".join(
            f"{end} ({number})" for end, number in facts.others.items()
        )
    if facts.layout != "kohya" and any(one.alpha is not None for one in facts.layers):
        yield "alpha tensors in this layout are refused or scaled twice by some readers: `lorakit export` folds them"
    if any(one.alpha is None and one.scale != 1 for one in facts.layers):
        yield (
            f"{ADAPTER} scales the effect by {fmean(one.scale for one in facts.layers):.3g} in diffusers, and ComfyUI "
            "does not read it: `lorakit export` folds it in"
        )


def ranks(facts: Facts) -> dict[int, int]:
    """How many layers have each rank."""
    return dict(sorted(Counter(one.rank for one in facts.layers).items()))


def alphas(facts: Facts) -> dict[float | None, int]:
    """How many layers have each alpha."""
    return dict(Counter(one.alpha for one in facts.layers))


def kinds(facts: Facts) -> dict[str, list[Layer]]:
    """The layers by kind, with their component where it is a text encoder."""
    found = defaultdict(list)
    main = facts.names[0].family.components[0] if facts.names else ""
    for one in facts.layers:
        component = one.component or main
        found[one.kind if component == main else f"{component} {one.kind}"].append(one)
    return dict(found)

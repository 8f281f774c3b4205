"""What LoRA files call the layers of a model: each family's own table, read in both directions.

In between, a layer has its name of diffusers after its component: `transformer.transformer_blocks.0.attn.to_q`. In
templates `#` stands for any number.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lorakit.family import Family

Layout = Literal["diffusers", "comfyui", "kohya"]
LAYOUTS: tuple[Layout, ...] = ("diffusers", "comfyui", "kohya")
"""Layouts that files are written in."""

NUMBER = re.compile(r"(?<![A-Za-z0-9#])(?:\d+|#)(?![A-Za-z0-9#])")
BLOCKS = re.compile(r"^.*(?<![^.])(?:layers|attentions|\w+_blocks)\.\d+\.")
KOHYA_TEXT = ("lora_te1_", "lora_te2_", "lora_te3_")


@dataclass(frozen=True, slots=True)
class Place:
    """What a name in a file stands for: the layers, of which there are several where it fuses them, and the layout."""

    layers: tuple[str, ...]
    layout: str


class Templates:
    """Templates and what each of them stands for; names are looked up by what they have between their numbers."""

    def __init__(self, pairs: Iterable[tuple[str, tuple[str, ...], str]]) -> None:
        self._known: dict[str, list[tuple[list[str], tuple[str, ...], str]]] = defaultdict(list)
        for template, targets, layout in pairs:
            self._known[NUMBER.sub("#", template)].append((NUMBER.findall(template), targets, layout))

    def find(self, name: str) -> Place | None:
        """What the name stands for, its numbers filled in; None where no template is like it."""
        numbers = NUMBER.findall(name)
        for wanted, targets, layout in self._known.get(NUMBER.sub("#", name), ()):
            if all(one in ("#", number) for one, number in zip(wanted, numbers, strict=True)):
                free = [number for one, number in zip(wanted, numbers, strict=True) if one == "#"]
                return Place(tuple(_filled(target, free) for target in targets), layout)
        return None


class Names:
    """The names of one family's layers in files."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._reading = Templates(_readable(family))
        self._fused = Templates((layer, (name, *layers), "") for name, layers in _fusions(family) for layer in layers)

    def read(self, name: str) -> Place | None:
        """What a file's name for a layer, without its halves' endings, stands for."""
        return self._reading.find(name)

    def written(self, layer: str, layout: Layout) -> tuple[str, tuple[str, ...]]:
        """(what files of the layout call it, the layers that this name stands for, in their order)."""
        component, _, inner = layer.partition(".")
        layout = resolved(self.family, layout)
        main = component == self.family.components[0]
        if layout == "kohya":
            known = self._fused.find(layer) if main else None
            name, *layers = known.layers if known else (inner, layer)
            prefix = "lora_unet_" if main else KOHYA_TEXT[_text(self.family).index(component)]
            return prefix + name.replace(".", "_"), tuple(layers)
        prefix = self.family.comfyui_prefix if layout == "comfyui" and main else component
        return f"{prefix}.{inner}", (layer,)


def resolved(family: Family, layout: Layout) -> Layout:
    """The layout itself, or that which ComfyUI loads whole where the family has no other for it."""
    if layout != "comfyui" or family.comfyui_prefix:
        return layout
    return "kohya" if family.layout == "kohya" else "diffusers"


def kind(layer: str) -> str:
    """A layer without its component and its numbered blocks: `attn.to_q`."""
    return BLOCKS.sub("", layer.partition(".")[2])


def recognised(families: Mapping[str, Family], names: Iterable[str], metadata: Mapping[str, str]) -> list[Names]:
    """The families that know the most of the names, those that the metadata names alone where there are any."""
    found = list(names)
    tables = [Names(family) for family in families.values()]
    counts = [sum(table.read(name) is not None for name in found) for table in tables]
    best = [table for table, count in zip(tables, counts, strict=True) if count and count == max(counts)]
    told = [table for table in best if is_named(table.family, metadata)]
    return told or best


def is_named(family: Family, metadata: Mapping[str, str]) -> bool:
    """Whether a file's metadata says that it is for this family."""
    return bool(variants(family, metadata)) or metadata.get("ss_base_model_version") == family.base_model_version


def variants(family: Family, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The variants that the metadata names."""
    architecture = metadata.get("modelspec.architecture", "").lower()
    return tuple(name for name, one in family.variants.items() if architecture == one.architecture.lower())


def _text(family: Family) -> tuple[str, ...]:
    """The text encoders that files may hold layers of, in kohya's order."""
    return tuple(name for name in family.components if name.startswith("text_encoder"))


def _fusions(family: Family) -> Iterator[tuple[str, tuple[str, ...]]]:
    component = family.components[0]
    for name, layers in family.kohya_names.items():
        yield name, tuple(f"{component}.{layer}" for layer in layers)


def _readable(family: Family) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Every template that files are known to use, with the layers and the layout that it means.

    Where kohya's trainers fuse layers, they never use diffusers' names.
    """
    own = not any(len(layers) > 1 for layers in family.kohya_names.values())
    for name, layers in _fusions(family):
        yield f"lora_unet_{name.replace('.', '_')}", layers, "kohya"
        yield f"lycoris_{name.replace('.', '_')}", layers, "lycoris"
        yield f"diffusion_model.{name}", layers, "comfyui"
    for layer in family.file_layers:
        component, _, inner = layer.partition(".")
        flat = inner.replace(".", "_")
        yield layer, (layer,), "diffusers"
        if component != family.components[0]:
            yield f"{KOHYA_TEXT[_text(family).index(component)]}{flat}", (layer,), "kohya"
            yield f"{component}.{inner.removeprefix('text_model.')}", (layer,), "diffusers"
            continue
        for prefix, layout in (("diffusion_model.", "comfyui"), ("base_model.model.", "peft"), ("", "bare")):
            yield f"{prefix}{inner}", (layer,), layout
        for prefix, layout in (("lora_unet_", "kohya"), ("lora_transformer_", "kohya"), ("lycoris_", "lycoris")):
            if own or prefix != "lora_unet_":
                yield f"{prefix}{flat}", (layer,), layout


def _filled(template: str, numbers: Iterable[str]) -> str:
    given = iter(numbers)
    return re.sub("#", lambda _: next(given), template)

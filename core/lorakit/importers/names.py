"""Which family and variant a foreign file means: families say themselves what others call them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lorakit.family import Family, Variant
from lorakit.registry import Shelf


@dataclass(frozen=True, slots=True)
class Meant:
    """A family, the variant where that is said too, and the key that said it."""

    family: Family
    variant: str
    key: str

    @property
    def model(self) -> Variant:
        """The published model: the variant, or the family's usual one."""
        return self.family.variants[self.variant or self.family.default_variant]

    @property
    def flows(self) -> bool:
        """Whether the model was trained to match flows."""
        return self.model.flow_shift is not None


def plain(name: str) -> str:
    """A name without what differs between spellings: capitals, hyphens, a path and an ending."""
    last = name.strip().replace("\\", "/").rstrip("/").rpartition("/")[2]
    for ending in (".safetensors", ".ckpt", ".pt", ".py", ".json"):
        last = last.removesuffix(ending)
    return last.lower().replace("-", "_")


def meant(names: Iterable[tuple[str, str]], families: Shelf[Family]) -> Meant | None:
    """What (key, name) pairs mean, the surest first: the first that names a family, and a variant of it."""
    found: Meant | None = None
    for key, name in names:
        for family in families.values():
            if found is not None and family is not found.family:
                continue
            variant = _variant(name, family)
            if variant is not None and (found is None or (variant and not found.variant)):
                found = Meant(family, variant, key if found is None else found.key)
        if found is not None and found.variant:
            return found
    return found


def _variant(name: str, family: Family) -> str | None:
    """The variant of the family that a name means, empty where only the family, None where neither."""
    wanted = plain(name)
    published = {plain(about.source): variant for variant, about in family.variants.items()}
    if wanted in published:
        return published[wanted]
    known: Mapping[str, str] = {called.lower().replace("-", "_"): one for called, one in family.known_as.items()}
    for called in (wanted, wanted.partition(":")[0]):
        if called in known:
            return known[called]
    # a file or folder that is called after a published model, and then some
    inside = [called for called in published if called in wanted]
    return published[max(inside, key=len)] if inside else None

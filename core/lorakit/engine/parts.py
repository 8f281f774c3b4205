"""What crosses the boundary between the engine and a family: tensors with names, and the three working parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from lorakit.dataset import Reference
from lorakit.engine.sharing import loading
from lorakit.engine.unread import onto
from lorakit.engine.weights import hollow
from lorakit.errors import ModelError


@dataclass(frozen=True, slots=True)
class Text:
    """Text conditioning of a batch.

    `hidden` is (B, L, D), zero past each item's length; `lengths` are the items' own numbers of tokens; `pooled`, for
    families that have one, is (B, D').
    """

    hidden: Tensor
    lengths: tuple[int, ...]
    pooled: Tensor | None = None

    @property
    def mask(self) -> Tensor | None:
        """(B, L), True for real tokens; None where every token is real, so that attention needs no mask."""
        if min(self.lengths) == self.hidden.shape[1]:
            return None
        positions = torch.arange(self.hidden.shape[1], device=self.hidden.device)
        return positions < onto(torch.tensor(self.lengths), self.hidden.device)[:, None]

    def to(self, device: torch.device, dtype: torch.dtype) -> Text:
        """The same on another device, in another number format."""
        pooled = None if self.pooled is None else onto(self.pooled, device).to(dtype)
        return Text(onto(self.hidden, device).to(dtype), self.lengths, pooled)

    @staticmethod
    def collate(items: Sequence[Text]) -> Text:
        """One batch of several, padded with zeros to the longest and no further."""
        longest = max(item.hidden.shape[1] for item in items)
        hidden = [nn.functional.pad(item.hidden, (0, 0, 0, longest - item.hidden.shape[1])) for item in items]
        pooled = [item.pooled for item in items if item.pooled is not None]
        lengths = tuple(length for item in items for length in item.lengths)
        return Text(torch.cat(hidden), lengths, torch.cat(pooled) if pooled else None)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a single item, for the cache."""
        assert len(self.lengths) == 1, "only single items are cached"
        found = {"hidden": self.hidden[:, : self.lengths[0]].contiguous()}
        return found if self.pooled is None else {**found, "pooled": self.pooled.contiguous()}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Text:
        """The single item that `tensors` gave."""
        return Text(tensors["hidden"], (tensors["hidden"].shape[1],), tensors.get("pooled"))


@dataclass(frozen=True, slots=True)
class Words:
    """A caption, and the references that the text encoder sees with it."""

    caption: str
    references: tuple[Reference, ...] = ()

    @staticmethod
    def about(caption: str, references: tuple[Reference, ...]) -> Words:
        """The words for a sample; references count only where the family's text encoder sees them."""
        return Words(caption, references if all(one.text_shape for one in references) else ())


Said = Text | Words
"""Text conditioning of one item, or the words that it is made of at every pass."""
Conditions = Callable[[Sequence[Any]], Text]
"""What was said of several items, Texts or Words alike, as the conditioning of their batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a denoiser is told besides the noisy latents and their noise level.

    `references` are the latents of the reference pictures, (B, C, h, w) each, the same number of them and of the same
    shapes for every item. `sizes` (B, 6) are each picture's original height and width, the top and left of its crop,
    and its height and width as encoded, in pixels (size conditioning, arXiv 2307.01952, section 2.2).
    `guidance` is what a model with embedded guidance is told, None for others.
    """

    text: Text
    references: tuple[Tensor, ...] = ()
    sizes: Tensor | None = None
    guidance: float | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The same on another device, text and references in another number format."""
        references = tuple(onto(one, device).to(dtype) for one in self.references)
        sizes = None if self.sizes is None else onto(self.sizes, device)
        return Batch(self.text.to(device, dtype), references, sizes, self.guidance)


@dataclass(frozen=True, slots=True)
class Source:
    """A local model folder in diffusers layout, and the number format to load it in.

    Where `empty`, models come without memory behind their parameters, and core fills them block by block.
    """

    folder: Path
    name: str
    dtype: torch.dtype
    empty: bool = False

    def hollow(self) -> Source:
        """The same, giving models without weights."""
        return replace(self, empty=True)

    def load(self, kind: Any, component: str, *, dtype: torch.dtype | None = None, **options: Any) -> Any:
        """The component loaded through `kind.from_pretrained`, or a ModelError that says what is wrong with it."""
        folder = self.folder / component
        if not folder.is_dir():
            raise ModelError(f"the model {self.name} lacks its {component}", fix=f"It should be in {folder}.")
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            options = {"dtype": dtype or self.dtype, "use_safetensors": True, **options}
        try:
            if self.empty and hasattr(kind, "from_config"):
                return hollow(kind, folder, dtype or self.dtype)
            with loading():
                return kind.from_pretrained(folder, **options)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(
                f"the {component} of {self.name} cannot be loaded",
                why=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
                fix=f"Check that {folder} is complete, or download it again.",
            ) from error


class TextEncoder(Protocol):
    """Captions to text conditioning; freed once everything is cached.

    `encode` lets gradients through. Where parts of `module` may be trained, they are its children, called as the
    sub-folders that they come from.
    """

    module: nn.Module

    def encode(self, captions: Sequence[str], references: Sequence[Image.Image] = ()) -> list[Text]:
        """One single-item Text for each caption, independent of its neighbours.

        `references` are what the captions are about, at the shapes the family chose; they are the same for all.
        """


class ImageCoder(Protocol):
    """Pictures to unit-scaled latents and back."""

    module: nn.Module
    scale: int
    """Pixels per latent pixel, along one side."""
    channels: int

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, C, H / scale, W / scale)."""

    def decode(self, latents: Tensor) -> Tensor:
        """The reverse, not clamped."""


class Denoiser(Protocol):
    """The model that is taught."""

    module: nn.Module
    blocks: Sequence[nn.Module]
    """The repeated blocks: adapters, quantization and checkpointing live inside them."""
    component: str
    """The model folder's sub-folder, and the prefix of exported names."""

    def predict(self, noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """(B, C, H, W) latents at noise levels t (B,) to the scheduler's target, of the same shape."""

    def condition(self, t: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """What each of the family's `modulation` layers gets, (B, in) or more rows; not asked where there are none."""

    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        """Two predictions combined as the family's reference pipeline does; not asked where guidance is not true."""


def classifier_free(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): from the negative prediction towards the positive one."""
    return negative + scale * (positive - negative)

"""LoRA files on a loaded model: put on, exchanged, made stronger or weaker, without loading it again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorakit.engine.adapter import Adapter
from lorakit.engine.lora_linear import LoraLinear
from lorakit.engine.lora_pairs import Pair, Pairs
from lorakit.errors import ModelError
from lorakit.family import Family
from lorakit.layer_names import Names
from lorakit.planned import PlannedLora


class Worn:
    """Places on models for every layer of a LoRA; what is put on them works at `adapter.strength`.

    `hosts` are the models by component. A layer that the file put on has nothing for gets nothing.
    """

    def __init__(
        self,
        hosts: Mapping[str, nn.Module],
        family: Family,
        settings: PlannedLora,
        layers: Pairs,
        device: torch.device,
    ) -> None:
        plain = settings.model_copy(update={"alpha": float(settings.rank), "dropout": 0.0})  # scales are in the pairs
        flat = nn.Parameter(torch.zeros(0, device=device), requires_grad=False)
        self.adapter = Adapter({}, flat, (), hosts, plain)
        self._places: dict[str, LoraLinear] = {}
        names = Names(family)
        for component, host in hosts.items():
            host.requires_grad_(False)
            for path, linear in list(host.named_modules()):
                place = names.read(family.exported_name(component, path)) if hasattr(linear, "in_features") else None
                if place and place.layers[0] in layers:
                    self._place(host, path, linear, place.layers[0], layers[place.layers[0]])
        lost = [name for name in layers if name not in self._places]
        if lost:
            raise ModelError(
                f"the LoRA is not for this model: {lost[0]} is not there",
                why=f"{len(lost)} of its {len(layers)} layers are not",
                fix="Name the model that it was made for with --source or --variant.",
            )

    def put_on(self, pairs: Pairs) -> None:
        """Wear these pairs instead of what was worn."""
        strange = [name for name in pairs if name not in self._places]
        if strange:
            raise ModelError(f"the LoRA has another layer than the first one, {strange[0]}")
        for name, place in self._places.items():
            inputs, outputs = place.lora_A.shape[1], place.lora_B.shape[0]
            pair = pairs.get(name) or Pair(torch.zeros(1, inputs), torch.zeros(outputs, 1))
            _check(name, pair, (inputs, outputs))
            exact = pair.exact()
            place.lora_A, place.lora_B = self._half(exact.lora_a), self._half(exact.lora_b)

    def _place(self, host: nn.Module, path: str, linear: nn.Module, name: str, pair: Pair) -> None:
        _check(name, pair, (int(linear.in_features), int(linear.out_features)))  # type: ignore[arg-type]
        parent, _, child = path.rpartition(".")
        exact = pair.exact()
        placed = LoraLinear(linear, self._half(exact.lora_a), self._half(exact.lora_b), self.adapter)
        self._places[name] = placed
        setattr(host.get_submodule(parent), child, placed)

    def _half(self, half: Tensor) -> nn.Parameter:
        return nn.Parameter(half.to(self.adapter.flat.device), requires_grad=False)


def _check(name: str, pair: Pair, size: tuple[int, int]) -> None:
    own = (pair.lora_a.shape[1], pair.lora_b.shape[0])
    if own != size:
        raise ModelError(
            f"the LoRA is not for this model: {name} is {own[0]} by {own[1]}, and the model's {size[0]} by {size[1]}",
            fix="Name the model that it was made for with --source or --variant.",
        )

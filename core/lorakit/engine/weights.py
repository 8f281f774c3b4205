"""A model's weights read from its safetensors files a few at a time, into a module that was made without any."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lorakit import jsontext
from lorakit.engine.headers import opened as sound
from lorakit.engine.sharing import loading
from lorakit.errors import ModelError

INDEX = ".safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: `start` is counted in bytes from the file's own beginning."""

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, opened: BufferedReader, rows: int | None = None) -> Tensor:
        """The tensor in memory of its own, or its first `rows` rows."""
        shape = self.shape if rows is None or len(self.shape) < 2 else (rows, *self.shape[1:])
        held = torch.empty(math.prod(shape) * self.dtype.itemsize, dtype=torch.uint8)
        opened.seek(self.start)
        if opened.readinto(held.numpy().data) != len(held):
            raise OSError(f"{self.file.name} ends within a tensor")
        return held.view(self.dtype).view(shape)


class Weights:
    """The tensors of a component's folder, by name; `of` is what errors call the component.

    Files are read and never mapped: mapped pages count as memory of the process for as long as the map lasts, beside
    the tensors that were copied from them.
    """

    def __init__(self, folder: Path, of: str) -> None:
        self.folder, self._of = folder, of
        try:
            files = self._files()
            held = {file: _places(file) for file in sorted(set(files.values()))}
            absent = sorted(name for name, file in files.items() if name not in held[file])
            if absent:
                raise KeyError(f"no file holds {_some(absent)}")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise self._unreadable(error) from error
        self._places = {name: held[file][name] for name, file in files.items()}
        self.shapes = {name: list(place.shape) for name, place in self._places.items()}

    def read(self, names: Iterable[str], rows: int | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor on the CPU) of each name, or its first `rows` rows; file by file, in the order they lie there.

        Nothing is kept here, so that a tensor that is dropped is freed.
        """
        wanted = sorted(names, key=lambda name: (self._places[name].file, self._places[name].start))
        try:
            for file, some in groupby(wanted, key=lambda name: self._places[name].file):
                with file.open("rb") as opened:
                    for name in some:
                        yield name, self._places[name].read(opened, rows)
        except OSError as error:
            raise self._unreadable(error) from error

    def fingerprint(self) -> str:
        """A digest of names, shapes and a first row of every tensor, as bf16.

        Enough to tell two checkpoints apart, and the same however one of them is split into files or cast.
        """
        digest = hashlib.sha256()
        rows = dict(self.read(self._places, rows=1))
        for name in sorted(rows):
            digest.update(json.dumps([name, self.shapes[name]]).encode())
            digest.update(rows[name].to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _files(self) -> dict[str, Path]:
        """The file of each tensor."""
        indices = sorted(self.folder.glob(f"*{INDEX}"), key=_length)
        if indices:
            table = jsontext.parse(indices[0].read_text(encoding="utf-8"))["weight_map"]
            strangers = [file for file in table.values() if Path(file).name != file]
            if strangers:
                raise ValueError(f"{indices[0].name} names {strangers[0]}, which is not a file beside it")
            return {str(name): self.folder / file for name, file in table.items()}
        files = sorted(self.folder.glob("*.safetensors"), key=_length)
        if not files:
            pickled = [path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in self.folder.glob(pattern)]
            raise ModelError(
                f"the {self._of} has no safetensors files" + (f", only {_some(pickled)}" if pickled else ""),
                why="pickled weights can run code when they are read, so lorakit does not" if pickled else "",
                fix="Save it again with `save_pretrained(folder, safe_serialization=True)` on a machine that you "
                "trust it on, or download the repository's safetensors version."
                if pickled
                else f"They should be in {self.folder}; download it again.",
            )
        return dict.fromkeys(_places(files[0]), files[0])

    def _unreadable(self, error: Exception) -> ModelError:
        return ModelError(
            f"the {self._of} cannot be loaded",
            why=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}",
            fix=f"Check that {self.folder} is complete, or download it again.",
        )


def _places(file: Path) -> dict[str, Place]:
    """Where a file's tensors lie; safetensors' own reader is asked first whether the file is whole and sound."""
    with sound(file):
        pass
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
        table = jsontext.parse(opened.read(header))
    table.pop("__metadata__", None)
    strange = sorted({about["dtype"] for about in table.values()} - set(DTYPES))
    if strange:
        raise ValueError(f"{file.name} holds numbers of the kind {_some(strange)}")
    return {
        name: Place(file, 8 + header + about["data_offsets"][0], DTYPES[about["dtype"]], tuple(about["shape"]))
        for name, about in table.items()
    }


def hollow(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A diffusers model of the folder's configuration whose parameters take no memory; buffers and tables are real.

    Made as `from_pretrained` makes it, so that filling it gives the same model, bit for bit.
    """
    from accelerate import init_empty_weights
    from diffusers.models.modeling_utils import no_init_weights

    with loading(), no_init_weights(), init_empty_weights(include_buffers=False):
        torch.set_default_dtype(dtype)
        module: nn.Module = kind.from_config(kind.load_config(folder))
    return module.eval()


def check_names(module: nn.Module, weights: Weights, of: str) -> None:
    """Refuse weights that lack something which the module holds, or hold something of another shape or unknown."""
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    passed_over = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    missing = sorted(set(wanted) - set(weights.shapes))
    unknown = sorted(
        name for name in set(weights.shapes) - set(wanted) if not any(re.search(one, name) for one in passed_over)
    )
    other = sorted(name for name in set(wanted) & set(weights.shapes) if wanted[name] != weights.shapes[name])
    said = [
        f"{words} {_some(names)}"
        for words, names in (("it lacks", missing), ("it has the unknown", unknown), ("of other shapes are", other))
        if names
    ]
    if said:
        raise ModelError(
            f"the weights of the {of} do not fit its configuration",
            why="; ".join(said),
            fix=f"Download {weights.folder} again, weights and config.json of the same model.",
        )


def fill(
    module: nn.Module,
    weights: Weights,
    names: Iterable[str],
    dtype: torch.dtype,
    prefix: str = "",
    precise: Collection[str] = (),
) -> None:
    """Give the module its tensors `prefix` + name for every name, on the CPU, floating ones cast to `dtype`.

    Parts called as `precise` says stay in fp32, as `from_pretrained` keeps those that the model's class names.
    """
    for full, tensor in weights.read([prefix + name for name in names]):
        name = full[len(prefix) :]
        kept = any(part in full.split(".") for part in precise)
        own = (torch.float32 if kept else dtype) if tensor.is_floating_point() else tensor.dtype
        place(module, name, tensor.to(own))


def place(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor where the module has a parameter or buffer called `name`."""
    path, _, leaf = name.rpartition(".")
    parent = module.get_submodule(path)
    is_parameter = leaf in parent._parameters
    setattr(parent, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)


def _length(path: Path) -> tuple[int, str]:
    """The plain file before its variants, such as `model.fp16.safetensors`."""
    return len(path.name), path.name


def _some(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")

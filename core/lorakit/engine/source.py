"""Where a plan's weights are: a local folder, a hub repository brought here, or the family's toy."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import get_ident
from typing import Any

import torch

from lorakit import jsontext
from lorakit.checks import TOY
from lorakit.engine.cache import Cache
from lorakit.engine.parts import Source
from lorakit.engine.sharing import loading
from lorakit.errors import ModelError, RunError
from lorakit.family import Family
from lorakit.plan import Plan
from lorakit.version import __version__

# pickles, and the same weights again for other frameworks
PASSED_OVER = ("*.bin", "*.pt", "*.ckpt", "*.msgpack", "*.onnx", "*.onnx_data", "*.xml")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def locate(plan: Plan, family: Family) -> Source:
    """The plan's model as a folder on this machine."""
    name, dtype = plan.settings.model.source, DTYPES[plan.settings.train.precision]
    if name == TOY:
        return Source(_toy(plan, family), f"the toy model of {family.title}", dtype)
    path = Path(name).expanduser().absolute()
    if path.is_file():
        return Source(_unpacked(path, plan, family), str(path), dtype)
    if path.is_dir():
        return Source(path, str(path), dtype)
    if Path(name).is_absolute():
        raise ModelError(
            f"the model {name} is gone", why="it was there when the run was planned", fix="Put it back where it was."
        )
    variant = family.variants[plan.settings.variant]
    return Source(_download(name, (*family.components, *variant.components)), name, dtype)


def scheduler_config(source: Source) -> dict[str, Any]:
    """What the model's scheduler_config.json says; nothing where there is none."""
    file = source.folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return {}
    try:
        found = jsontext.parse(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not a table")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the scheduler of {source.name} cannot be read", why=str(error), fix=f"Mend {file}."
        ) from error
    return found


def cache_folder(plan: Plan) -> Path:
    """Where everything that can be made again is kept, shared by the runs of one output folder."""
    return Path(plan.settings.output).expanduser() / ".cache"


def _toy(plan: Plan, family: Family) -> Path:
    folder = cache_folder(plan) / "toys" / f"{family.name}-{plan.settings.variant}-{__version__}"
    return _made(folder, lambda aside: family.toy(aside, plan.settings.variant))


def _unpacked(file: Path, plan: Plan, family: Family) -> Path:
    """A single-file model as a folder, made once for each content of the file and of its configuration."""
    variant, files = family.variants[plan.settings.variant], Cache(cache_folder(plan)).files
    name = plan.settings.model.config or variant.source
    config = Path(name).expanduser().absolute()
    if not config.is_dir():
        config = _download(name, (*family.components, *variant.components), (".json", ".txt"), "model.config")
    about = sorted(path for path in config.rglob("*") if path.suffix in (".json", ".txt") and path.is_file())
    known = [files.of(file), __version__, *(f"{path.relative_to(config)} {files.of(path)}" for path in about)]
    files.save()
    digest = hashlib.sha256("\n".join(known).encode()).hexdigest()
    return _made(cache_folder(plan) / "models" / digest[:32], lambda aside: family.unpack(file, config, aside))


def _put(aside: Path, folder: Path) -> None:
    """Move what was made to its place, unless another process was faster: somebody may read there already."""
    try:
        aside.rename(folder)
    except OSError:
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is made once, whole or not at all."""
    if not (folder / "complete").exists():
        aside = folder.with_name(f".{folder.name}.{os.getpid()}-{get_ident()}")
        try:
            aside.mkdir(parents=True, exist_ok=True)
            with loading():
                make(aside)
            (aside / "complete").touch()
            _put(aside, folder)
        except OSError as error:
            raise RunError(f"{folder} cannot be written", where="output", why=str(error)) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def _download(
    name: str, components: tuple[str, ...], endings: tuple[str, ...] = ("",), where: str = "model.source"
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [f"{component}/*{ending}" for component in components for ending in endings]
    # the bases are the HTTP library's own errors, whichever library it is: a connection cut in the middle
    failures: Any = (*HfHubHTTPError.__bases__, HFValidationError, LocalEntryNotFoundError, OSError)
    try:
        return Path(
            snapshot_download(name, allow_patterns=["model_index.json", *patterns], ignore_patterns=list(PASSED_OVER))
        )
    except failures as error:
        raise ModelError(
            f"the hub repository {name} cannot be fetched",
            where=where,
            why=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            fix="Check the name and the connection, sign in with `hf auth login` if it is gated, or name a folder.",
        ) from error

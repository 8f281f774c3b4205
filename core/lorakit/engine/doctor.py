"""`lorakit doctor`: whether this machine can train, and what to do about what cannot."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lorakit.engine import trials
from lorakit.engine.memory import device_for
from lorakit.engine.trials import Examined, reason
from lorakit.family import Family
from lorakit.registry import Shelves
from lorakit.words import count

GIB = 1 << 30
IMPORTED = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "bitsandbytes", "numpy", "PIL")
DISTRIBUTIONS = {"PIL": "pillow"}  # where the package is imported under another name
OPTIONAL = ("optimum-quanto", "tensorboard", "wandb", "mlflow-skinny")
LITTLE_DISK, SOME_DISK = GIB, 20 * GIB  # below the first nothing is saved; below the second few models fit
LITTLE_MEMORY = 8 * GIB


def examine(shelves: Shelves, output: Path) -> Iterator[Examined]:
    """Everything, in order: packages, device, memory, kernels, quantizers, optimizers, disk, hub cache."""
    yield from versions()
    device = device_for("auto")
    yield from devices(device)
    yield from memory()
    yield from trials.attention(device)
    yield from trials.quantizers(shelves, device)
    yield from trials.optimizers(shelves, device)
    yield disk("output folder", output.expanduser().absolute())
    yield from hub(shelves)


# -- packages ------------------------------------------------------------------------------------------------


def versions() -> Iterator[Examined]:
    """Python and the packages that training stands on: there, new enough, and importable."""
    yield Examined("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    wanted = _wanted()
    for name in IMPORTED:
        yield _package(name, wanted.get(DISTRIBUTIONS.get(name, name)))
    for name in OPTIONAL:
        try:
            yield Examined(name, "ok", f"{importlib.metadata.version(name)}, optional")
        except importlib.metadata.PackageNotFoundError:
            yield Examined(name, "ok", "not installed; it is optional")


def _wanted() -> dict[str, Any]:
    """The versions that lorakit's own package asks for, by distribution."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("lorakit") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return {}
    asked = [Requirement(line) for line in lines]
    return {one.name: one.specifier for one in asked if one.marker is None}


def _package(name: str, wanted: Any) -> Examined:
    distribution = DISTRIBUTIONS.get(name, name)
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return Examined(distribution, "problem", "not installed", f"pip install {distribution}")
    if wanted is not None and not wanted.contains(version, prereleases=True):
        return Examined(
            distribution, "problem", f"{version}, and lorakit needs {wanted}", f"pip install '{distribution}{wanted}'"
        )
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken package may raise anything
        remedy = f"Install it anew: pip install --force-reinstall '{distribution}=={version}'"
        return Examined(distribution, "problem", f"{version}, and cannot be imported: {reason(error)}", remedy)
    built = f", built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU'}" if name == "torch" else ""
    return Examined(distribution, "ok", f"{version}{built}")


# -- device and memory ---------------------------------------------------------------------------------------


def devices(device: torch.device) -> Iterator[Examined]:
    """The device that training takes, what its driver says, and one product of matrices on it."""
    cards = _nvidia()
    for card in cards:
        yield Examined("driver", "ok", card)
    if device.type == "cuda":
        yield from _card(device)
    elif cards:
        why = (
            "torch is built for CPU"
            if torch.version.cuda is None
            else "torch cannot reach it: the driver may be too old"
        )
        remedy = "Install a CUDA build of torch that fits the driver (https://pytorch.org/get-started/locally)."
        yield Examined("device", "problem", f"there is a GPU, and {why}", remedy)
    elif device.type == "cpu":
        said = f"CPU, {count(os.cpu_count() or 1, 'core')}, {count(torch.get_num_threads(), 'thread')}; no GPU"
        yield Examined("device", "warning", said, "Toy models train on a CPU; published ones need a GPU.")
    else:
        yield Examined("device", "ok", device.type)
    yield trials.tried("arithmetic", lambda: _product(device), "Update the driver, or set model.device = 'cpu'.")


def _nvidia() -> list[str]:
    """A line for each card, as the driver's own tool tells it; none where there is no such tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = ["--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader"]
    try:
        done = subprocess.run([tool, *query], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _card(device: torch.device) -> Iterator[Examined]:
    about = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    said = f"{about.name}, capability {about.major}.{about.minor}, {_size(total)}, {_size(free)} free"
    if free < 0.8 * total:
        yield Examined("device", "warning", said, "Another process holds the rest (nvidia-smi shows which): stop it.")
    else:
        yield Examined("device", "ok", said)
    if about.major < 8:
        remedy = "Say train.precision = 'fp32', or use a card of the Ampere generation or newer."
        yield Examined("bf16", "warning", "the card has no arithmetic of its own for it", remedy)


def _product(device: torch.device) -> str:
    a = torch.ones(64, 64, device=device, dtype=torch.bfloat16)
    if (a @ a).float().sum().item() != 64**3:
        raise RuntimeError("a product of matrices is wrong")
    return f"a product of matrices in bf16 is right on {device.type}"


def memory() -> Iterator[Examined]:
    """The host's memory, or the share of it that a container may take."""
    import psutil

    found = psutil.virtual_memory()
    total, free = found.total, found.available
    limit = _container()
    if limit is not None and limit < total:
        total, free = limit, min(free, limit)
    said = f"{_size(total)}, {_size(free)} free{' (a limit of the container)' if total == limit else ''}"
    if free < LITTLE_MEMORY:
        yield Examined("memory", "warning", said, "Text encoders are loaded whole, up to 17 GB: close what else runs.")
    else:
        yield Examined("memory", "ok", said)


def _container() -> int | None:
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(file).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    return None


# -- disk and hub --------------------------------------------------------------------------------------------


def disk(subject: str, folder: Path) -> Examined:
    """The space where a folder is, or would be made, and whether it may be written."""
    above = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    try:
        free = shutil.disk_usage(above).free
    except OSError as error:
        return Examined(subject, "problem", f"{folder}: {reason(error)}", "Name another folder.")
    said = f"{folder}: {_size(free)} free"
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        return Examined(
            subject, "problem", f"{said}, and {above} cannot be written to", "Name another folder, or mend its rights."
        )
    if free < LITTLE_DISK:
        return Examined(subject, "problem", said, "Free some space: a run cannot be saved.")
    if free < SOME_DISK:
        return Examined(subject, "warning", said, "Checkpoints, caches and published models take tens of gigabytes.")
    return Examined(subject, "ok", said)


def hub(shelves: Shelves) -> Iterator[Examined]:
    """The hub's cache: its space, its size, and which published models of the families are in it."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    folder = Path(constants.HF_HUB_CACHE)
    yield disk("hub cache", folder)
    try:
        cache = scan_cache_dir(folder)
    except CacheNotFound:
        yield Examined("hub models", "ok", f"none yet{_offline()}")
        return
    except (OSError, ValueError) as error:
        yield Examined("hub models", "problem", reason(error), f"Mend or remove {folder}.")
        return
    here = {repo.repo_id: repo for repo in cache.repos}
    yield Examined("hub models", "ok", f"{count(len(here), 'download')}, {_size(cache.size_on_disk)}{_offline()}")
    for family in shelves.families.values():
        for variant, about in family.variants.items():
            if about.source in here:
                yield _model(family, variant, here[about.source])
    for warning in cache.warnings[:3]:
        yield Examined(
            "hub cache", "warning", " ".join(str(warning).split())[:200], "Remove what is broken: hf cache delete."
        )


def _model(family: Family, variant: str, repo: Any) -> Examined:
    """Whether a model in the cache has every part that the family reads."""
    needed = (*family.components, *family.variants[variant].components)
    snapshots = [Path(revision.snapshot_path) for revision in repo.revisions]
    missing = min(
        ([name for name in needed if not (one / name).is_dir()] for one in snapshots), key=len, default=list(needed)
    )
    subject, said = f"{family.name} {variant}", f"{repo.repo_id}, {_size(repo.size_on_disk)}"
    if missing:
        remedy = "A run fetches what is missing, if the hub is reached."
        return Examined(subject, "warning", f"{said}, without {', '.join(missing)}", remedy)
    return Examined(subject, "ok", f"{said}, complete in folders")


def _offline() -> str:
    from huggingface_hub import constants

    return "; the hub is not asked (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""


def _size(number: float) -> str:
    return f"{number / 1e9:,.1f} GB"

"""Where tensors live, and how much they take."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from lorakit.errors import ConfigError, TrainingError


def device_for(name: str) -> torch.device:
    """The plan's device; `auto` takes a GPU where there is one."""
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not usable[name]:
        raise ConfigError(
            f"model.device = '{name}', and torch finds no such device",
            fix="Check the driver and the torch build, or use auto.",
        )
    return torch.device(name)


def peak(device: torch.device) -> int:
    """Most bytes in use so far: of the device's memory, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # the standard library does not tell there
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def free(device: torch.device) -> int:
    """Bytes that can still be had: of the device's memory, or of the system's on a CPU; 0 where nobody tells."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0  # another system than Linux
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def held(device: torch.device) -> int:
    """Bytes of a device's memory that tensors are in; 0 on a CPU, where nobody counts them apart.

    From here on `peak` tells the most of what comes.
    """
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def spilled(device: torch.device) -> int:
    """Bytes that lie elsewhere than they should: a device's in host memory, or the process's on the disk.

    Some drivers give more device memory than there is. Nothing here waits for the device.
    """
    if device.type == "cuda":
        return max(0, torch.cuda.memory_reserved(device) - torch.cuda.get_device_properties(device).total_memory)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0  # another system than Linux
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSwap:")), 0)


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the device or on the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def exhausted(device: torch.device, error: BaseException, update: int, smaller: Sequence[str]) -> TrainingError:
    """What a person is told when memory ran out after `update` updates; `smaller` is what to change, in order."""
    return TrainingError(
        f"the memory of {describe(device)} does not suffice, after update {update}",
        why=next(iter(str(error).strip().splitlines()), ""),
        fix=f"Change, in this order: {'; '.join(smaller)}.",
    )


def release() -> None:
    """Give freed memory back, to the device and to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Give what the C library keeps of freed memory back to the system, where it is glibc.

    A block of weights that is freed beside a small one that stays would otherwise count on: twice the model, measured
    by benchmarks/loading.py.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {os.cpu_count()} cores" if device.type == "cpu" else device.type

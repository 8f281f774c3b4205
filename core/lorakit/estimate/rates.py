"""How fast a device is: by its data sheet, or as `lorakit calibrate` measured it and wrote it down."""

from __future__ import annotations

import bisect
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from lorakit.errors import LorakitError
from lorakit.estimate import cards
from lorakit.estimate.cards import Card

VERSION = 1
MATMUL = 0.80  # share of the sustained rate that the model's own products reach, where nothing was measured
ATTENTION = (0.70, 0.60)  # the same of attention, forward and backward
BANDWIDTH = 0.80  # share of the rated bandwidth that element-wise operations reach
LINK = 0.65  # share of the rated rate between cards: as of PCIe to host memory, 20 of 31.5 GB/s; not measured
LAUNCH = 10e-6  # seconds of the host for one operation: 60 blocks with checkpointing take 0.3 s
# How much slower real trainers are than this model of one. Three published runs of a 20-billion model can be computed:
# musubi-tuner's pull request 722 (RTX 5090, 1328 pixels, fp8, rank 64) took 5.39 s where the model says 3.9,
# OneTrainer's 1109 (RTX 6000 Ada, 1328 pixels, no mask) 6.6 where it says 3.9, musubi-tuner's issue 694 (A100, editing
# with one reference, batches of 2) 14.7 where it says 7.6. This is the geometric mean of 1.38, 1.71 and 1.93.
SLACK = 1.65
CONTEXT = 1.0e9  # bytes of the CUDA context and the libraries' workspaces


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Rates in one number format: products by width in FLOP/s, the widest last; attention forward and backward."""

    matmul: tuple[tuple[int, float], ...]
    attention: tuple[float, float]

    def at(self, width: float) -> float:
        """The rate of products of that width; between two measured ones, in proportion."""
        widths = [one for one, _ in self.matmul]
        place = bisect.bisect_left(widths, width)
        if place in (0, len(widths)):
            return self.matmul[min(place, len(widths) - 1)][1]
        (narrow, slow), (wide, fast) = self.matmul[place - 1 : place + 1]
        return slow + (fast - slow) * (width - narrow) / (wide - narrow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a device sustains; memory and `context` in bytes, `bandwidth` in bytes/s, `kernel` in seconds.

    `ceiling` is the rate, by number format, that no product exceeds. `kernel` is the time of an operation on next to
    nothing, forward and backward; a GPU hides it behind the work where there is enough, which `hides` says. `slack` is
    what is added for all that this leaves out.
    """

    name: str
    memory: float | None
    ceiling: dict[str, float]
    speeds: dict[str, Speed]
    bandwidth: float
    kernel: tuple[float, float]
    hides: bool
    context: float
    slack: float
    measured: str = ""
    """When it was measured, empty where it was not."""

    @property
    def link(self) -> float:
        """Bytes/s from the other cards of the host, which is never measured: by the data sheet."""
        found = cards.of_device(self.name)
        return (found.link if found else cards.PCIE) * 1e9 * LINK

    @property
    def source(self) -> str:
        """Where the rates come from, in words."""
        return f"measured by lorakit calibrate on {self.measured}" if self.measured else "data sheet, not measured"


@dataclass(frozen=True, slots=True)
class Device:
    """A card: its name, its memory, and what of that is taken before there is any model, in bytes."""

    name: str
    memory: float
    context: float


def of_card(card: Card) -> Rates:
    """What a card is taken to sustain."""
    ceiling = {"bf16": card.bf16 * card.sustained * 1e12, "fp32": card.fp32 * card.sustained * 1e12}
    return Rates(
        name=card.name,
        memory=card.memory * 1e9,
        ceiling=ceiling,
        speeds={
            name: Speed(matmul=((1, rate * MATMUL),), attention=(rate * ATTENTION[0], rate * ATTENTION[1]))
            for name, rate in ceiling.items()
        },
        bandwidth=card.bandwidth * 1e9 * BANDWIDTH,
        kernel=(LAUNCH, LAUNCH),
        hides=True,
        context=CONTEXT,
        slack=SLACK,
    )


# -- what was measured -------------------------------------------------------------------------------------------


def folder() -> Path:
    """Where measured rates are kept, for all runs of a user."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "lorakit" / "rates"


def file_of(device: str) -> Path:
    """The file of a device's rates."""
    return folder() / f"{re.sub(r'[^A-Za-z0-9.]+', '-', device).strip('-.')}.json"


def to_json(rates: Rates) -> str:
    """The rates as text that `read` understands."""
    return json.dumps({"version": VERSION, **asdict(rates)}, indent=1) + "\n"


def read(file: Path) -> Rates | None:
    """The rates in a file; None where there are none that this version understands."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        if table.pop("version") != VERSION:
            return None
        speeds = {
            name: Speed(
                matmul=tuple((int(width), float(rate)) for width, rate in one["matmul"]),
                attention=(float(one["attention"][0]), float(one["attention"][1])),
            )
            for name, one in table.pop("speeds").items()
        }
        kernel = table.pop("kernel")
        return Rates(**table, speeds=speeds, kernel=(float(kernel[0]), float(kernel[1])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, LorakitError):
        return None


def named(gpu: str) -> Rates:
    """The rates of a card by its name: those measured on one, else those of its data sheet."""
    card = cards.find(gpu)
    return next((one for one in _all() if one.hides and cards.of_device(one.name) == card), of_card(card))


def of_device(device: str) -> Rates | None:
    """The rates of the device that its driver calls so: measured, else by its data sheet, else None."""
    card = cards.of_device(device)
    return read(file_of(device)) or (of_card(card) if card else None)


def here(wanted: str = "auto") -> Rates | None:
    """What was measured on this machine last, on a GPU rather than on a CPU, or on the kind of device wanted."""
    found = [one for one in _all() if wanted in ("auto", "cuda" if one.hides else "cpu")]
    return next((one for one in found if one.hides), next(iter(found), None))


def wanted(gpu: str | None, memory: float | None, device: str) -> Rates | None:
    """The rates of the card that a person names, else of this machine's `device`; None of one known by its memory."""
    return named(gpu) if gpu else None if memory else here(device)


def card(gpu: str | None, memory: float | None, device: str) -> Device | None:
    """The card that a person names, by its name or its memory in GB, else this machine's; None where none is known."""
    found = wanted(gpu, memory, device)
    if memory:
        return Device(found.name if found else "card", memory * 1e9, found.context if found else CONTEXT)
    return Device(found.name, found.memory, found.context) if found and found.memory else None


def _all() -> list[Rates]:
    """Everything that was measured, the newest first."""
    try:
        files = sorted(folder().glob("*.json"), key=lambda file: -file.stat().st_mtime)
    except OSError:
        return []
    return [one for one in map(read, files) if one is not None]

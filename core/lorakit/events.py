"""The facts of a run, in order: one typed stream that every reader gets alike.

Events are frozen and turn into JSON lines and back. Paths are strings, times are seconds, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from lorakit.event import VERSION as VERSION
from lorakit.event import Event as Event
from lorakit.event import Unknown as Unknown
from lorakit.event import kinds

Verb = Literal["stop", "pause", "resume", "sample", "save"]
VERBS: tuple[Verb, ...] = get_args(Verb)

AlarmKind = Literal[
    "not finite",
    "loss spike",
    "gradient explosion",
    "dead adapter",
    "slow-down",
    "memory growth",
    "memory spill",
    "out of memory",
    "empty preview",
]

Phase = Literal[
    "index",
    "cache text",
    "cache images",
    "load",
    "quantize",
    "calibrate",
    "fit",
    "attention",
    "compile",
    "recover",
    "train",
    "save",
    "draw",
]


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A run begins, or goes on from `resumed_from` updates; `changed` are settings that its plan has anew."""

    folder: str
    name: str
    device: str
    versions: tuple[tuple[str, str], ...] = ()
    resumed_from: int = 0
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PhaseStarted(Event):
    """A phase of `total` items begins; 0 where the number is not known."""

    phase: Phase
    total: int = 0


@dataclass(frozen=True, kw_only=True)
class PhaseProgress(Event):
    """`done` items of the phase are done."""

    phase: Phase
    done: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PhaseFinished(Event):
    """A phase is over; `note` says what came of it."""

    phase: Phase
    seconds: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class UpdateFinished(Event):
    """The adapter was updated: `update` counts from 1, `passes` are pictures shown so far.

    `loss` is the mean over the update's pictures, `seconds` the time since the update before, `memory` the peak of
    the device, or of the process where the device is the CPU, in bytes.
    """

    update: int
    passes: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    memory: int = 0


@dataclass(frozen=True, kw_only=True)
class PassCaptured(Event):
    """Passes of one form are replayed as a CUDA graph from now on, the number `graphs` of them; it took `seconds`."""

    form: str
    graphs: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EstimateChecked(Event):
    """The first updates held against what was estimated: seconds of an update (their median), and the peak of memory.

    `expected_seconds` and `expected_memory` are None where nobody could tell; `source` says where the device's rates
    come from.
    """

    update: int
    seconds: float
    expected_seconds: float | None
    memory: int
    expected_memory: float | None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Validated(Event):
    """The adapter was measured after `update` updates, before the first one where that is 0, always on the same draws.

    `loss` is that of pictures held out, `train_loss` of as many that are trained on, both with their standard errors
    over pictures, and at each of the `levels`: points of (0, 1) that the objective makes its noise levels of.
    `loss_by_picture` is that of each picture held out, always in the same order. `gap` is the first less the second.
    `trigger` is how much larger the loss is without the trigger word, of pictures held out where there are any.
    `drift` is the distance of the model's answers from the base's, over their length, on prompts that have nothing to
    do with the pictures. `norm` and `largest_norm` are the median layer's and the largest Frobenius norm of the adapter
    over that of the weight it stands on. What there is nothing to measure on is None.
    """

    update: int
    loss: float | None
    loss_error: float | None
    train_loss: float | None
    train_error: float | None
    gap: float | None
    levels: tuple[float, ...]
    loss_by_level: tuple[float, ...]
    train_by_level: tuple[float, ...]
    trigger: float | None
    trigger_error: float | None
    drift: float | None
    norm: float | None
    largest_norm: float | None
    largest_layer: str
    seconds: float
    loss_by_picture: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint is safely on disk; `lora` is its loadable file."""

    update: int
    folder: str
    lora: str


@dataclass(frozen=True, kw_only=True)
class CheckpointRemoved(Event):
    """A checkpoint made room for newer ones, as `save.keep` asks."""

    update: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class PreviewDrawn(Event):
    """A picture was drawn with the adapter as it was after `update` updates, at `strength`."""

    update: int
    path: str
    prompt: str
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SheetDrawn(Event):
    """Every prompt at every strength, side by side."""

    path: str
    strengths: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PictureDrawn(Event):
    """A picture was drawn with a LoRA; in a grid `update` is its checkpoint's, and it may be `kept` from before."""

    path: str
    prompt: str
    strength: float
    guidance: float
    seed: int
    update: int | None = None
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class DrawingStopped(Event):
    """Drawing stopped before its end; `drawn` pictures of `total` are there."""

    drawn: int
    total: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something that a person should know; training goes on."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Alarm(Event):
    """The figures of a run say that something goes wrong; `advice` is what to do, the likeliest first.

    `count` is how many of its kind there were since the run began or went on. Training goes on, except after
    `not finite` and `out of memory`, which an exception follows.
    """

    kind: AlarmKind
    update: int
    message: str
    advice: tuple[str, ...] = ()
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Asked(Event):
    """Somebody asked for something while the run was under way: `by` says who, `refused` why nothing comes of it.

    What comes of it is told by `RunStopped`, `RunPaused`, `RunContinued`, `PreviewDrawn` or `CheckpointSaved`.
    """

    what: Verb
    by: str = ""
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class RunPaused(Event):
    """The run holds its place after `update` updates, until it is asked to go on or to stop."""

    update: int


@dataclass(frozen=True, kw_only=True)
class RunContinued(Event):
    """A paused run goes on; `seconds` is how long it held, which counts in its phase and in no update."""

    update: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunStopped(Event):
    """The run stopped before its end and can be resumed."""

    update: int
    reason: str
    folder: str


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The run is complete; `lora` is the file and `proof` what was checked about it.

    `workflow` is the ComfyUI workflow beside it, empty where the family has none.
    """

    update: int
    folder: str
    lora: str
    proof: str
    seconds: float
    workflow: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerRecovered(Event):
    """A layer of the quantized base was corrected.

    `before` and `after` are relative errors of its output against the full-precision model's, those that reach it from
    earlier layers included.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class RecoveryStopped(Event):
    """Making a recovery adapter stopped before its end; the same command goes on after what was done.

    That is `blocks` blocks, and `updates` updates of all of them together.
    """

    blocks: int
    updates: int = 0
    reason: str
    folder: str


@dataclass(frozen=True, kw_only=True)
class RecoveryFinished(Event):
    """The recovery adapter is complete; `before` and `after` are relative errors of the denoiser's own output."""

    path: str
    report: str
    before: float
    after: float
    seconds: float


KINDS: Mapping[str, type[Event]] = kinds()

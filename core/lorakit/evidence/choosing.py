"""The rule by which a checkpoint is recommended, as a pure function of what was measured, and why it may be wrong.

Broken checkpoints are dropped, then those that drift far. What is within one standard error of the lowest held-out loss
stays. Of those, the one that gains the most trigger sensitivity for its drift comes first; where no trigger sensitivity
is more than chance, the lowest held-out loss does, for then nothing else speaks for a checkpoint. No loss of training,
and no loss on training pictures, is read.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorakit.events import Validated
from lorakit.evidence.candidates import Candidate

MOST_DRIFT = 0.5
"""Distance from the base's answers, over their length, that is too far; answers that share nothing are about 1.4 apart.

It is a judgement and no measurement: on the toy, a run that learns well drifts by 0.2 where pictures of what the model
knows are shown too, and by 0.4 and more where they are not.
"""

SURE = 2.0  # standard errors from which on something is said to be so, where several are looked at


@dataclass(frozen=True, slots=True)
class Gap:
    """How much higher a held-out loss is than another, and the standard error of that; None where it is not known.

    Pictures and noise are the same in both, so where each picture's loss is known the error is that of the differences:
    that some pictures are harder than others is the same for both and says nothing.
    """

    mean: float
    error: float | None

    @property
    def within(self) -> bool:
        """Whether the two are within one standard error."""
        return self.mean <= (self.error or 0.0)

    @property
    def sure(self) -> bool:
        """Whether the difference is more than chance brings about."""
        return self.mean > SURE * (self.error or 0.0)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A checkpoint in its place; `gap` is to the lowest held-out loss, None where no picture is held out."""

    candidate: Candidate
    gap: Gap | None
    within: bool


@dataclass(frozen=True, slots=True)
class Dropped:
    """A checkpoint that does not come into question."""

    candidate: Candidate
    why: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Checkpoints, the recommended one first; none where all are dropped.

    `lowest` has the lowest held-out loss; `rise` is how far the last one measured lies above it, `fall` how far the one
    before the last lies above the last, where each is more than two standard errors. `lasting` says that the one before
    the last comes after the lowest too, and lies more than one above it: between two updates a loss goes up and down.
    """

    ranked: tuple[Ranked, ...]
    dropped: tuple[Dropped, ...]
    lowest: Candidate | None = None
    last: Candidate | None = None
    rise: Gap | None = None
    lasting: bool = False
    fall: Gap | None = None
    trigger_told: bool = False
    all_drift: bool = False
    most_drift: float = MOST_DRIFT
    unmeasured: tuple[int, ...] = field(default=())

    @property
    def first(self) -> Ranked | None:
        """The recommended one."""
        return self.ranked[0] if self.ranked else None

    @property
    def band(self) -> tuple[Ranked, ...]:
        """Those that the held-out loss does not tell apart."""
        return tuple(one for one in self.ranked if one.within)


def gap(one: Validated, other: Validated) -> Gap:
    """How much higher the held-out loss of `one` is than that of `other`."""
    assert one.loss is not None
    assert other.loss is not None
    pairs = list(zip(one.loss_by_picture, other.loss_by_picture, strict=False))
    if len(pairs) > 1 and len(one.loss_by_picture) == len(other.loss_by_picture):
        apart = [a - b for a, b in pairs]
        return Gap(statistics.fmean(apart), statistics.stdev(apart) / len(apart) ** 0.5)
    return Gap(one.loss - other.loss, other.loss_error)


def recommend(candidates: Sequence[Candidate], most_drift: float = MOST_DRIFT) -> Recommendation:
    """The checkpoints by the rule; `most_drift` is the drift over which one is dropped."""
    broken = [Dropped(one, why) for one in candidates if (why := one.broken)]
    sound = [one for one in candidates if not one.broken and one.measured is not None]
    unmeasured = tuple(one.update for one in candidates if not one.broken and one.measured is None)
    near = [one for one in sound if _drift(one) <= most_drift]
    all_drift = bool(sound) and not near
    far = [] if all_drift else [one for one in sound if one not in near]
    kept = sound if all_drift else near
    dropped = [*broken, *(Dropped(one, _too_far(one, most_drift)) for one in far)]
    ranked, told = _ranked(kept)
    lowest = min((one for one in kept if _loss(one) is not None), key=_sure_loss, default=None)
    course = [one for one in sound if _loss(one) is not None]
    return Recommendation(
        ranked=tuple(ranked),
        dropped=tuple(sorted(dropped, key=lambda one: one.candidate.update)),
        lowest=lowest,
        last=course[-1] if course else None,
        rise=_rise(course),
        lasting=_lasting(course),
        fall=_fall(course),
        trigger_told=told,
        all_drift=all_drift,
        most_drift=most_drift,
        unmeasured=unmeasured,
    )


def _ranked(kept: Sequence[Candidate]) -> tuple[list[Ranked], bool]:
    """The band by its trade, then the others by how far they are from it; and whether the trigger told anything."""
    held = [one for one in kept if _loss(one) is not None]
    if held:
        lowest = min(held, key=_sure_loss)
        gaps = {one.update: gap(_validated(one), _validated(lowest)) for one in held}
        band = [one for one in held if gaps[one.update].within]
    else:
        gaps, band = {}, _strongest(kept)
    told = any(_tells(one) for one in band)
    ordered = sorted(band, key=lambda one: _trade(one, told))
    rest = sorted((one for one in kept if one not in band), key=lambda one: _behind(one))
    return [Ranked(one, gaps.get(one.update), one in band) for one in (*ordered, *rest)], told


def _strongest(kept: Sequence[Candidate]) -> list[Candidate]:
    """Where no loss tells: those within one standard error of the highest trigger sensitivity, or all."""
    known = [one for one in kept if _trigger(one) is not None]
    if not known:
        return list(kept)
    best = max(known, key=lambda one: (_trigger(one) or 0.0, -one.update))
    least = (_trigger(best) or 0.0) - (_validated(best).trigger_error or 0.0)
    return [one for one in known if (_trigger(one) or 0.0) >= least]


def _trade(one: Candidate, told: bool) -> tuple[float, float, int]:
    """Smaller is better: trigger sensitivity for its drift; where no trigger tells, the loss; without one, the age."""
    drift, loss = _drift(one), _loss(one)
    if told:
        return -max(0.0, _trigger(one) or 0.0) / max(drift, 1e-6), drift, one.update
    if loss is not None:
        return loss, drift, one.update
    return 0.0, 0.0, -one.update


def _behind(one: Candidate) -> tuple[float, float, int]:
    loss = _loss(one)
    return (loss if loss is not None else 0.0), -(_trigger(one) or 0.0), one.update


def _rise(course: Sequence[Candidate]) -> Gap | None:
    """How far the last lies above the lowest, where that is sure."""
    if len(course) < 2:
        return None
    lowest, last = min(course, key=_sure_loss), course[-1]
    found = gap(_validated(last), _validated(lowest))
    return found if last is not lowest and found.sure else None


def _lasting(course: Sequence[Candidate]) -> bool:
    """Whether the last two measured both lie above the lowest, which came before them."""
    if _rise(course) is None or len(course) < 3:
        return False
    lowest = min(course, key=_sure_loss)
    return course[-2] is not lowest and not gap(_validated(course[-2]), _validated(lowest)).within


def _fall(course: Sequence[Candidate]) -> Gap | None:
    """How far the one before the last lies above the last, where that is the lowest and it is sure."""
    if len(course) < 2 or min(course, key=_sure_loss) is not course[-1]:
        return None
    found = gap(_validated(course[-2]), _validated(course[-1]))
    return found if found.sure else None


def _too_far(one: Candidate, most: float) -> str:
    return f"it drifts {_drift(one):.1%} from the base on unrelated prompts, more than {most:.1%}"


def _validated(one: Candidate) -> Validated:
    assert one.measured is not None
    return one.measured


def _loss(one: Candidate) -> float | None:
    return _validated(one).loss


def _sure_loss(one: Candidate) -> float:
    loss = _loss(one)
    assert loss is not None
    return loss


def _trigger(one: Candidate) -> float | None:
    return _validated(one).trigger


def _tells(one: Candidate) -> bool:
    """Whether its trigger sensitivity is surely more than none."""
    measured = _validated(one)
    return measured.trigger is not None and measured.trigger > SURE * (measured.trigger_error or 0.0)


def _drift(one: Candidate) -> float:
    drift = _validated(one).drift
    return drift if drift is not None else 0.0

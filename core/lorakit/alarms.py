"""Early warning: what a run's own figures say before its result does.

Everything is judged against the run's own past, by medians, so that a few odd values neither raise an alarm nor hide
the next one. Nothing here is saved: a run that goes on learns its usual figures anew.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image

from lorakit import advice
from lorakit.estimate.savings import Saves
from lorakit.events import Alarm, AlarmKind, PreviewDrawn, UpdateFinished
from lorakit.plan import Plan
from lorakit.shown import FADED, collapsed, entropy, shows_nothing

BINS = 8
"""Parts of the noise levels, each with its own usual loss: that of flow matching differs tenfold between them."""
WINDOW = 64  # values that "usual" is the median of
EARLY = 8  # the update at which memory is looked at for the first time
HISTORY = 20  # values before anything is judged
SIGMA = 1.4826  # a normal spread, in median absolute deviations
SPREADS = 6.0  # how far out a loss must be, in usual spreads
SPIKE = 3.0  # and how many times the usual loss: of 1,440 single passes of the toy, none was
UNSEEN = 6.0  # the same where a picture was shown less than twice, for pictures differ
EXPLOSION = 10.0  # times the usual gradient norm
STILL = 3  # updates without a gradient, or probes without a movement
SLOW = 2.0  # times the first pace
LATE = 0.1  # seconds by which an update is late at least
PACE = 20  # updates that a pace is the median of
GROWTH = 4  # windows of memory that must all have grown
GROWN = 1.05  # and by how much in all
LEAST = 64 << 20  # bytes of growth that are worth a word
COMPARED = 16  # training pictures that a preview which holds little is held against


@dataclass(frozen=True, slots=True)
class Pass:
    """What a picture's pass was: the sample, its draw in (0, 1), the noise level that was made of it, and the loss."""

    sample: int
    draw: float
    level: float
    loss: float


class Watch:
    """Follows one run; each answer is the alarms that a fact raises."""

    def __init__(self, plan: Plan, saves: Saves) -> None:
        self._plan, self._saves = plan, saves
        self.describe: Callable[[int], str] = str  # a sample, in words, by its index
        self.taught: Callable[[], Sequence[Path]] = tuple  # pictures that are trained on
        self._counts: Counter[str] = Counter()
        self._losses = _Losses()
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._still = 0
        self._moved: deque[float] = deque(maxlen=STILL)
        self._pace: deque[float] = deque(maxlen=PACE)
        self._first_pace = 0.0
        self._memory: deque[int] = deque(maxlen=GROWTH + 1)
        self._bits: defaultdict[str, list[float]] = defaultdict(list)

    def after(
        self, update: UpdateFinished, passes: Sequence[Pass], reach: float | None, spilled: int = 0
    ) -> Iterator[Alarm]:
        """The alarms of an update.

        `reach` is the norm of the adapter's B halves before it, where it was measured, and `spilled` the bytes that
        the device or the process holds elsewhere than in its own memory.
        """
        yield from self._loss(update, passes)
        yield from self._gradient(update)
        yield from self._adapter(update, reach)
        yield from self._speed(update)
        yield from self._space(update, spilled)

    @staticmethod
    def looks_at_memory(update: int) -> bool:
        """Whether where memory lies counts after this update: asking the system takes a quarter of a millisecond."""
        return update == EARLY or update % WINDOW == 0

    def raised(self, kind: AlarmKind, update: int, message: str, advice: Sequence[str] = ()) -> Alarm:
        """An alarm of a kind, counted."""
        self._counts[kind] += 1
        return Alarm(kind=kind, update=update, message=message, advice=tuple(advice), count=self._counts[kind])

    def smaller(self) -> tuple[str, ...]:
        """What to change where memory does not suffice."""
        return tuple(advice.out_of_memory(self._plan, self._saves))

    def _loss(self, update: UpdateFinished, passes: Sequence[Pass]) -> Iterator[Alarm]:
        found = self._losses.judged(passes)
        if found is None:
            return
        worst, times = found
        message = (
            f"the loss of update {update.update} is {times:.1f} times what is usual for its pictures and noise levels, "
            f"most of all {self.describe(worst.sample)} at noise level {worst.level:.4g}"
        )
        yield self.raised("loss spike", update.update, message, list(advice.loss_spikes(self._plan)))

    def _gradient(self, update: UpdateFinished) -> Iterator[Alarm]:
        norm, known = update.grad_norm, list(self._norms)
        self._norms.append(norm)
        if len(known) < HISTORY:
            return
        usual = statistics.median(known)
        if usual > 0 and norm > EXPLOSION * usual:
            message = (
                f"the gradient of update {update.update} is {norm / usual:.0f} times as long as usual ({norm:.3g})"
            )
            yield self.raised("gradient explosion", update.update, message, list(advice.gradients(self._plan)))

    def _adapter(self, update: UpdateFinished, reach: float | None) -> Iterator[Alarm]:
        self._still = 0 if update.grad_norm else self._still + 1
        why = ""
        if self._still == STILL:
            why = f"no gradient reached it in {STILL} updates"
        if reach is not None:
            self._moved.append(reach)
            if reach == 0 and update.update > 1:
                why = f"its B halves are all still 0 after {update.update - 1} updates"
            elif len(self._moved) == STILL and len(set(self._moved)) == 1:
                why = "its weights do not move"
        if why:
            message = f"the adapter learns nothing: {why}"
            yield self.raised("dead adapter", update.update, message, list(advice.dead(self._plan)))

    def _speed(self, update: UpdateFinished) -> Iterator[Alarm]:
        self._pace.append(update.seconds)
        if len(self._pace) < PACE:
            return
        now = statistics.median(self._pace)
        if not self._first_pace:
            self._first_pace = now
            self._pace.clear()
        elif now > max(SLOW * self._first_pace, self._first_pace + LATE):
            message = f"an update takes {now:.2g} s now, and took {self._first_pace:.2g} s at first"
            yield self.raised("slow-down", update.update, message, list(advice.SLOWER))
            self._pace.clear()  # the next word after as many updates again

    def _space(self, update: UpdateFinished, spilled: int) -> Iterator[Alarm]:
        if spilled > LEAST and self.looks_at_memory(update.update):
            message = f"{spilled / 1e9:.1f} GB do not lie in the memory where they belong, which makes everything slow"
            yield self.raised("memory spill", update.update, message, self.smaller())
        if update.update % WINDOW:
            return
        self._memory.append(update.memory)
        last = list(self._memory)
        grew = len(last) > GROWTH and all(one < other for one, other in pairwise(last))
        if grew and last[-1] > GROWN * last[0] and last[-1] - last[0] > LEAST:
            message = (
                f"memory grows: {last[-1] / 1e9:.2f} GB, and {last[0] / 1e9:.2f} GB {GROWTH * WINDOW} updates before"
            )
            yield self.raised("memory growth", update.update, message, list(advice.GROWING))
            self._memory.clear()

    def picture(self, drawn: PreviewDrawn) -> Iterator[Alarm]:
        """The alarm of a preview that shows nothing, or far less than earlier ones of its prompt."""
        with Image.open(drawn.path) as picture:
            fault, bits = shows_nothing(picture), entropy(picture)
        before = list(self._bits[drawn.prompt])
        self._bits[drawn.prompt].append(bits)
        if not fault and before and bits < FADED * statistics.median(before) and collapsed(bits, before, self._told()):
            fault = f"nearly empty ({bits:.1f} bits a pixel; earlier ones held {statistics.median(before):.1f})"
        if fault:
            message = f"the preview {Path(drawn.path).name} is {fault}: '{drawn.prompt[:60]}'"
            kind: AlarmKind = "empty preview"
            yield self.raised(kind, drawn.update, message, list(advice.previews(self._plan)))

    def _told(self) -> list[float]:
        """The entropy of some training pictures, read only where a preview already looks poor."""
        paths = list(self.taught())
        found = []
        for path in paths[:: max(1, len(paths) // COMPARED)][:COMPARED]:
            with suppress(OSError, ValueError), Image.open(path) as picture:
                found.append(entropy(picture))
        return found


class _Losses:
    """What loss is usual at a noise level, how a picture differs from that, and how much an update's mean does."""

    def __init__(self) -> None:
        self._bins: list[deque[float]] = [deque(maxlen=WINDOW) for _ in range(BINS)]
        self._pictures: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=4))
        self._spread: deque[float] = deque(maxlen=2 * WINDOW)

    def judged(self, passes: Sequence[Pass]) -> tuple[Pass, float] | None:
        """The pass that stands out most, and how many times the usual the loss is, where that is a spike."""
        known: list[tuple[float, bool, Pass]] = []
        for one in passes:
            found = self._residual(one)
            if found is not None:
                known.append((*found, one))
        if not known:
            return None
        mean = statistics.fmean(residual for residual, _, _ in known)
        past = list(self._spread)
        self._spread.append(mean)
        if len(past) < HISTORY:
            return None
        usual = statistics.median(past)
        spread = SIGMA * statistics.median(abs(one - usual) for one in past)
        least = math.log(SPIKE if all(seen for _, seen, _ in known) else UNSEEN)
        if mean - usual <= max(least, SPREADS * spread):
            return None
        return max(known, key=lambda one: one[0])[2], math.exp(mean - usual)

    def _residual(self, one: Pass) -> tuple[float, bool] | None:
        """How the logarithm of a loss differs from the usual, and whether the picture was seen often enough to tell."""
        value = math.log(max(one.loss, 1e-12))
        held = self._bins[min(BINS - 1, int(one.draw * BINS))]
        usual = statistics.median(held) if len(held) >= HISTORY // 4 else None
        held.append(value)
        if usual is None:
            return None
        own = self._pictures[one.sample]
        residual = value - usual - (statistics.median(own) if own else 0.0)
        seen = len(own) > 1
        own.append(value - usual)
        return residual, seen

"""A recommendation in sentences: the reasons for each checkpoint, how the run went, and why the evidence is weak."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorakit.evidence.candidates import Candidate
from lorakit.evidence.choosing import Gap, Ranked, Recommendation
from lorakit.evidence.likeness import Likeness, Similar
from lorakit.evidence.previews import Previews
from lorakit.history import History
from lorakit.words import count

TOP = 3  # checkpoints that are told of
FEW_PICTURES = 6  # held out, below which their standard error is itself hardly known
FEW_CHECKPOINTS = 3  # below which there is little to choose from


def reasons(one: Ranked, made: Recommendation) -> list[str]:
    """What speaks for and against a checkpoint, figures first."""
    return [*_loss(one, made), *_trade(one, made), *_previews(one.candidate), *_similar(one.candidate)]


def _loss(one: Ranked, made: Recommendation) -> Iterator[str]:
    measured = one.candidate.measured
    assert measured is not None
    if measured.loss is None or one.gap is None or made.lowest is None:
        yield "no picture is held out, so no loss speaks for it or against it"
        return
    loss = f"held-out loss {_value(measured.loss, measured.loss_error)}"
    if one.candidate is made.lowest:
        yield f"{loss}, the lowest"
        return
    least = f"the lowest, that of update {made.lowest.update}"
    if one.within:
        yield f"{loss}, within one standard error of {least} ({_above(one.gap)})"
    else:
        yield f"{loss}, more than one standard error above {least} ({_above(one.gap)})"


def _trade(one: Ranked, made: Recommendation) -> Iterator[str]:
    measured = one.candidate.measured
    assert measured is not None
    drift = "drift not measured" if measured.drift is None else f"drift {measured.drift:.1%}"
    if measured.trigger is None:
        yield f"{drift}; no trigger sensitivity was measured"
        return
    trigger = f"trigger sensitivity {_value(measured.trigger, measured.trigger_error, sign=True)}"
    ratio = ""
    if made.trigger_told and measured.drift:
        ratio = f", {max(0.0, measured.trigger) / measured.drift:.3g} for each unit of drift"
    yield f"{trigger}, {drift}{ratio}"


def _previews(one: Candidate) -> Iterator[str]:
    for seen in one.previews:
        if seen.fault:
            yield f"its preview {seen.path.name} is {seen.fault}"
        if seen.copied:
            copied = Path(seen.copied).name
            yield f"its preview {seen.path.name} nearly copies {copied} ({seen.apart} of 128 bits of a hash differ)"


def _similar(one: Candidate) -> Iterator[str]:
    for told in one.similar:
        if said := similar(told):
            yield f"{told.judge}: {said}"


def similar(told: Similar) -> str:
    """What a judge says of a checkpoint's previews; empty where it says nothing."""
    parts = (("image", told.image), ("text", told.text))
    return ", ".join(
        f"{name} similarity {_value(mean.value, mean.error)} ({count(mean.previews, 'preview')})"
        for name, mean in parts
        if mean is not None
    )


def judge(told: Likeness) -> str:
    """What a judge looked at, and what it could not."""
    which = "previews whose prompt holds the trigger word" if told.called else "previews"
    said = [f"{which} are held against at most {count(told.compared, 'training picture')}"]
    if not told.compared:
        why = told.why_not or ("no prompt of a preview holds the trigger word" if told.seen else "there is no preview")
        said = [f"no preview is held against training pictures: {why}"]
    if told.judge.reads:
        said.append("each preview is held against its prompt")
    if cut := told.cut:
        said.append(f"of {count(len(cut), 'prompt')} only the first {told.judge.reads} tokens are read")
    return f"{'; '.join(said)}. It is told and decides nothing."


def order(made: Recommendation) -> str:
    """By what the band was ordered."""
    if made.trigger_told:
        return "most trigger sensitivity for its drift"
    if made.lowest is not None:
        return "lowest held-out loss, for no trigger sensitivity is more than two of its standard errors"
    return "the last first, for nothing that was measured tells them apart"


def course(made: Recommendation) -> str:
    """How the held-out loss went, where that says something about the length of the run; empty elsewhere."""
    if made.rise is not None and made.last is not None:
        low = made.first.candidate.update if made.first else 0
        earlier = " An earlier checkpoint is recommended." if low < made.last.update else ""
        rises = f"the held-out loss rises by {_signed(made.rise)} from its lowest to update {made.last.update}"
        if made.lasting:
            return f"Overfitting: {rises}; from there on pictures are learned by heart.{earlier}"
        return f"Perhaps overfitting: {rises}, but the one measured before that does not.{earlier}"
    if made.fall is not None and made.last is not None:
        return (
            f"Still learning: the held-out loss fell by {_signed(made.fall)} in the last stretch before update "
            f"{made.last.update}. A longer run may do better; `lorakit resume` goes on with more train.updates."
        )
    return ""


def weak(history: History, made: Recommendation, previews: Previews) -> list[str]:
    """Why the evidence is weak; nothing where it is not."""
    return [*_of_pictures(made), *_of_checkpoints(history, made), *_of_the_trade(made), *_of_previews(made, previews)]


def _of_pictures(made: Recommendation) -> Iterator[str]:
    measured = [one.candidate.measured for one in made.ranked if one.candidate.measured]
    if not measured:
        return
    if all(one.loss is None for one in measured):
        yield "no picture is held out: overfitting cannot be seen, and checkpoints are told apart by the trigger alone"
        return
    held = max(len(one.loss_by_picture) for one in measured)
    if all(one.loss_error is None for one in measured):
        yield "one picture is held out, so there is no standard error"
    elif 0 < held < FEW_PICTURES:
        yield f"{count(held, 'picture')} held out: their standard error is itself uncertain"


def _of_checkpoints(history: History, made: Recommendation) -> Iterator[str]:
    if 0 < len(made.ranked) < FEW_CHECKPOINTS:
        yield f"{count(len(made.ranked), 'checkpoint')} to choose from"
    if made.unmeasured:
        named = ", ".join(map(str, made.unmeasured[:8])) + (", ..." if len(made.unmeasured) > 8 else "")
        yield f"not considered, because no validation came after them: checkpoints of update {named}"
    if len(made.band) > 1 and made.lowest is not None:
        yield (
            f"the held-out losses of {len(made.band)} checkpoints differ by less than their standard error, so the "
            "loss does not tell them apart"
        )
    if gone := _lowest_that_is_gone(history, made):
        yield (
            f"the held-out loss was lowest after update {gone}, whose checkpoint is not there; a larger save.keep, or "
            "save.every at validations, keeps it"
        )
    if made.all_drift:
        yield f"every checkpoint drifts more than {made.most_drift:.1%} from the base, so none was dropped for it"
    if not history.finished:
        yield "the run is not finished"


def _lowest_that_is_gone(history: History, made: Recommendation) -> int | None:
    """The update of the lowest held-out loss of all, where no checkpoint of it is left to choose."""
    held = {one.update: one.loss for one in history.validations if one.update and one.loss is not None}
    if not held or made.lowest is None:
        return None
    least = min(held, key=lambda update: held[update])
    return least if least not in history.checkpoints() else None


def _of_the_trade(made: Recommendation) -> Iterator[str]:
    if not made.band:
        return
    measured = [one.candidate.measured for one in made.band if one.candidate.measured]
    if all(one.trigger is None for one in measured):
        yield "no trigger sensitivity: the captions hold no trigger word"
    elif made.trigger_told and all(one.trigger_error is None for one in measured):
        yield "trigger sensitivity was measured on one picture, so there is no standard error"
    elif not made.trigger_told:
        yield "no trigger sensitivity is more than two of its standard errors"
    elif len(measured) > 1 and measured[0].trigger is not None and measured[1].trigger is not None:
        apart = abs(measured[0].trigger - measured[1].trigger)
        if apart <= (measured[0].trigger_error or 0.0):
            yield "the trigger sensitivities of the first two differ by less than a standard error"
    if all(one.drift is None for one in measured):
        yield "no drift was measured: validation.prompts is empty"


def _of_previews(made: Recommendation, previews: Previews) -> Iterator[str]:
    if made.first is not None and not made.first.candidate.previews:
        yield "no preview was drawn with the recommended checkpoint; look at some before you use it"
    elif made.first is not None and previews.why_not:
        yield f"previews were not compared with training pictures: {previews.why_not}"


def _value(value: float, error: float | None, sign: bool = False) -> str:
    shown = f"{value:+.4f}" if sign else f"{value:.4f}"
    return shown if error is None else f"{shown} ± {error:.4f}"


def _above(gap: Gap) -> str:
    return _value(gap.mean, gap.error, sign=True)


def _signed(gap: Gap) -> str:
    return _value(gap.mean, gap.error)

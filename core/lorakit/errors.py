"""What a user may meet when something is wrong: one paragraph saying what, where, why and what to do."""

from __future__ import annotations

from lorakit.secret import redacted


class LorakitError(Exception):
    """Anything a user can mend; shown without a traceback.

    The four parts are joined into one paragraph: `what` is wrong, `where` it was set, `why` it is refused
    (and by whom), and what to do (`fix`).
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        super().__init__(what)

    def __str__(self) -> str:
        parts = (self.what, self.where and f"Set in {self.where}", self.why, self.fix)
        return redacted(" ".join(_sentence(part) for part in parts if part))


class ConfigError(LorakitError):
    """A setting is unknown, out of range, missing, or at odds with another."""


class RuleError(LorakitError):
    """A plugin's rule refuses what the user, or the preset, asked for."""


class ConflictError(LorakitError):
    """Rules leave no value, or wish for two different ones."""


class PluginError(LorakitError):
    """A plugin does not load, takes a name twice, or breaks the contract of a hook."""


class DataError(LorakitError):
    """The pictures, captions or cached values cannot be used as they are."""


class ModelError(LorakitError):
    """A model cannot be loaded, lacks a part, or breaks a promise of the plan once loaded."""


class RunError(LorakitError):
    """A run folder cannot be made, read or continued."""


class NewerError(LorakitError):
    """Something was written by a newer lorakit, in a form that this one cannot read."""


class UnansweredError(LorakitError):
    """A run that should be under way gives no answer; the exit code is 1, because the question was right."""

    exit_code = 1


class TrainingError(LorakitError):
    """Training cannot go on; the exit code is 1, because the input was accepted."""

    exit_code = 1


class NotFiniteError(TrainingError):
    """The loss or a gradient is no finite number; nothing was changed by it."""


class StallError(TrainingError):
    """A process of several was lost, or fell silent; the others stopped."""


class ProcessError(TrainingError):
    """Another process of several failed; the first process tells of it, the others keep quiet."""


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?", ":")) else text + "."

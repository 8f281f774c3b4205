"""A promise that every family makes: its name, what it means for people where it is broken, and how it is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.errors import LorakitError

if TYPE_CHECKING:
    from lorakit.testing.bench import Bench


class PromiseError(LorakitError):
    """A family does not do what every family must."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise; `tried` raises a LorakitError where it is broken, and otherwise says what it saw."""

    name: str
    broken: str
    """One sentence: what a broken promise means."""
    tried: Callable[[Bench], str]

    def keep(self, bench: Bench) -> str:
        """What was seen; PromiseError where the promise is broken, whatever broke it."""
        try:
            return self.tried(bench)
        except Exception as error:
            found = str(error) if isinstance(error, LorakitError) else f"{type(error).__name__}: {error}"
            name = getattr(bench.family, "name", type(bench.family).__name__)
            raise PromiseError(
                f"the family '{name}' breaks the promise '{self.name}'",
                why=f"{' '.join(found.split()).rstrip('. ')}. {self.broken}",
            ) from error

    def __str__(self) -> str:
        return self.name


def require(holds: object, what: str) -> None:
    """PromiseError with `what` unless it holds."""
    if not holds:
        raise PromiseError(what)

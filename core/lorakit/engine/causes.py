"""Why several processes go no further, as the others are told, and as a person is."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from lorakit.engine.phases import StopAsked
from lorakit.errors import LorakitError, ProcessError, StallError

GOES_ON = "`lorakit resume` goes on."
"""What to do after something went wrong in a run; other work has words of its own."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Who left first, on which host, and what they said."""

    by: int
    host: str
    what: str
    stop: bool = False
    exit_code: int = 1

    @staticmethod
    def of(number: int, error: BaseException | None, reason: str) -> Cause:
        """That of process `number`: an error, or the reason of a stop."""
        stop = isinstance(error, StopAsked) or not isinstance(error, Exception)
        what = reason if stop else str(error) if isinstance(error, LorakitError) else f"{type(error).__name__}: {error}"
        code = error.exit_code if isinstance(error, LorakitError) else 1
        return Cause(number, socket.gethostname(), what or "stopped", stop, code)


def echo(cause: Cause) -> ProcessError:
    """An error of another process, which the first one tells of."""
    made = ProcessError(f"process {cause.by} on {cause.host} stopped all: {cause.what}")
    made.exit_code = cause.exit_code
    return made


def lost(who: str, why: str, goes_on: str) -> StallError:
    """Somebody is gone; `goes_on` says what to do next."""
    return StallError(f"{who} was lost", why=why, fix=f"It may have been killed, or its host gone; {goes_on}")


def stalled(who: str, seconds: float, goes_on: str) -> StallError:
    """Somebody is there, and nothing comes from it."""
    return StallError(
        f"{who} gave no sign of life for {seconds:g} s",
        why="train.timeout is how long the others wait",
        fix=f"See what it waits for; {goes_on}",
    )


@contextmanager
def reached(goes_on: str) -> Iterator[None]:
    """What a failure of the store, where processes leave their notes, means: whoever holds it is gone."""
    try:
        yield
    except dist.DistError as error:
        raise StallError(
            "the process that holds the connections was lost", why=str(error).splitlines()[0], fix=goes_on
        ) from None

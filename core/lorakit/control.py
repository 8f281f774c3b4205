"""What a host program says to a run that is under way, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from lorakit.events import Asked, Verb

PROGRAM = "the program"
"""Who asks, where nobody says."""

LOOK = 0.5
"""Seconds after which a paused run looks up: on Windows nothing interrupts a thread that waits without an end."""


class Control:
    """A hand on one run; every method may be called from any thread, and from a signal handler.

    What is asked is done between two of the run's events. The run tells of it by `Asked`, and by the event that comes
    of it. Nothing that is asked changes what is learned.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # on a lock that its own thread may take again, in a signal handler
        self._asked: list[Asked] = []
        self._impossible: dict[Verb, str] = {}
        self._stopping = self._paused = False
        self.reason = ""

    def stop(self, reason: str = "asked to stop", by: str = PROGRAM) -> None:
        """Stop after the update or item under way, with everything saved; a paused run stops where it is."""
        with self._changed:
            self.reason = self.reason or reason
            self.ask("stop", by)

    def pause(self, by: str = PROGRAM) -> None:
        """Hold still after the update or item under way, with everything in memory, until `resume` or `stop`."""
        self.ask("pause", by)

    def resume(self, by: str = PROGRAM) -> None:
        """Let a paused run go on."""
        self.ask("resume", by)

    def sample(self, by: str = PROGRAM) -> None:
        """Draw every prompt now: after the update under way, or once training begins; while paused, at once."""
        self.ask("sample", by)

    def save(self, by: str = PROGRAM) -> None:
        """Save a checkpoint now: after the update under way, or after the first; while paused, at once."""
        self.ask("save", by)

    @property
    def stopping(self) -> bool:
        """Whether somebody asked to stop."""
        return self._stopping

    @property
    def paused(self) -> bool:
        """Whether the run holds still, or is about to."""
        return self._paused

    def ask(self, what: Verb, by: str = PROGRAM) -> str:
        """Ask for something by its name; why nothing will come of it, or nothing where it was taken."""
        with self._changed:
            refused = self._refusal(what)
            if not refused:
                self._stopping |= what == "stop"
                self._paused = what == "pause" or (self._paused and what != "resume")
                if what == "stop" and not self.reason:
                    self.reason = f"asked to stop by {by}"
            self._asked.append(Asked(what=what, by=by, refused=refused))
            self._changed.notify_all()
            return refused

    def _refusal(self, what: Verb) -> str:
        if self._stopping:
            return "the run is stopping already"
        if what == "pause" and self._paused:
            return "it is paused already"
        if what == "resume" and not self._paused:
            return "it is not paused"
        return self._impossible.get(what, "")

    # -- what the run does with it -----------------------------------------------------------------------------------

    def begin(self, impossible: Mapping[Verb, str]) -> None:
        """Say what this run cannot do, and why; for the run."""
        with self._changed:
            self._impossible = dict(impossible)
            self._asked = [
                one if one.refused or one.what not in impossible else _refused(one, impossible[one.what])
                for one in self._asked
            ]

    def take(self) -> list[Asked]:
        """What was asked since this was called last, in order; for the run."""
        with self._changed:
            taken, self._asked = self._asked, []
            return taken

    def wait(self) -> None:
        """Wait until something is asked of a paused run, or a little; for the run."""
        with self._changed:
            if self._paused and not self._stopping and not self._asked:
                self._changed.wait(LOOK)


def _refused(asked: Asked, why: str) -> Asked:
    return Asked(what=asked.what, by=asked.by, refused=why, time=asked.time)

"""What a host program says to a run that is under way, from any thread."""

from __future__ import annotations

import threading


class Control:
    """A hand on a running run; every method may be called from any thread."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.reason = ""

    def stop(self, reason: str = "asked to stop") -> None:
        """Stop after the update or item under way, with everything saved."""
        self.reason = self.reason or reason
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether somebody asked to stop."""
        return self._stop.is_set()

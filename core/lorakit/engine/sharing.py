"""What the runs of one process share without wanting to: torch's number format, its random state, libraries' notices.

Runs in several threads work side by side, except while one of them changes what all of them see.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Sharing:
    """Many threads at work side by side, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._waiting = 0
        self._alone: int | None = None
        self._depth = threading.local()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Work beside others; not while somebody is alone, and nobody may be alone meanwhile."""
        if self._held() or self._alone == threading.get_ident():
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._alone is None and not self._waiting)
            self._enter()
        try:
            yield
        finally:
            with self._changed:
                self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work while nobody else does; whoever works beside others already stops to, and does again afterwards."""
        me = threading.get_ident()
        if self._alone == me:
            yield
            return
        held = self._held()
        with self._changed:
            if held:
                self._leave()
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._alone is None and not self._working)
                self._alone = me
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._alone = None
                if held:
                    self._enter()
                self._changed.notify_all()

    def _held(self) -> bool:
        return getattr(self._depth, "held", False)

    def _enter(self) -> None:
        self._working += 1
        self._depth.held = True

    def _leave(self) -> None:
        self._working -= 1
        self._depth.held = False
        self._changed.notify_all()


PROCESS = Sharing()
"""Of this process: torch and the model libraries keep one state for all of it."""

RANDOM = threading.RLock()
"""Held by whoever seeds torch's own generators and draws from them."""


@contextmanager
def loading() -> Iterator[None]:
    """For a while, alone in the process with the model libraries: they say nothing, and leave no trace.

    They set torch's number format while they load, draw random numbers for weights that they then replace, and show
    bars and notices.
    """
    import diffusers.utils.logging
    import transformers.utils.logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    with PROCESS.alone(), RANDOM, torch.random.fork_rng([]):
        dtype = torch.get_default_dtype()
        before = [(one.get_verbosity(), one.is_progress_bar_enabled()) for one in libraries]
        silent = are_progress_bars_disabled()
        try:
            for one in libraries:
                one.set_verbosity_error()
                one.disable_progress_bar()
            yield
        finally:
            torch.set_default_dtype(dtype)
            for one, (verbosity, bars) in zip(libraries, before, strict=True):
                one.set_verbosity(verbosity)
                if bars:
                    one.enable_progress_bar()
            (disable_progress_bars if silent else enable_progress_bars)()

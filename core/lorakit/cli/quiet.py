"""Keeping the terminal for what lorakit says."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from lorakit.secret import redacted

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal obeys instead of showing it; line breaks and tabs are neither."""


def shown(text: str) -> str:
    """The text as a terminal may have it: without secrets, and without what would move its cursor or rename it."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", redacted(text))


def hush() -> None:
    """Keep the bars and notices of the model libraries from the terminal; what matters is said by events."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


@contextmanager
def tracing() -> Iterator[None]:
    """Where LORAKIT_TRACE is set, every hook call with its answer is shown on the error output."""
    if os.environ.get("LORAKIT_TRACE", "0") in ("", "0"):
        yield
        return
    log, handler = logging.getLogger("lorakit.hooks"), _Shown(sys.stderr)
    level = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Shown(logging.StreamHandler[TextIO]):
    """Writes what a terminal may have."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(f"hook: {record.getMessage()}")

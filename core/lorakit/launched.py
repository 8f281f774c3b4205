"""What whoever started this process says of it: which one of how many it is, and after how many restarts.

torchrun says it in environment variables, and so does every launcher that follows torch's `env://` convention.
"""

from __future__ import annotations

import os

from lorakit.errors import ConfigError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def together() -> bool:
    """Whether the process was started as one of several that belong together, or as such a one alone."""
    return all(os.environ.get(name) for name in NEEDED)


def count() -> int | None:
    """How many processes were started together; None where nobody says."""
    return _number("WORLD_SIZE") if together() else None


def number() -> int:
    """Which one of them this process is; 0 where it is alone."""
    return _number("RANK") if together() else 0


def local() -> int:
    """Which one of those on its own machine it is, and so which GPU is its own."""
    return _number("LOCAL_RANK") if together() and os.environ.get("LOCAL_RANK") else 0


def restarts() -> int:
    """How often all of them were started anew, because one was lost."""
    return _number("TORCHELASTIC_RESTART_COUNT") if os.environ.get("TORCHELASTIC_RESTART_COUNT") else 0


def restartable() -> bool:
    """Whether torchrun starts all processes anew where one of them fails, which a stop that was asked for is not."""
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def agent() -> bool:
    """Whether torchrun keeps what the processes leave for one another, and not the first of them."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise ConfigError(f"{name} = '{text}' is no number", where="the environment", fix="Start with torchrun.")
    return int(text)

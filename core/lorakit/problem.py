"""What is odd about a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a plan that a person should know; an error stops the run, a warning does not."""

    message: str
    severity: Literal["error", "warning"] = "warning"
    owner: str = "lorakit"

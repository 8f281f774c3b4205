"""Secrets kept out of everything that is written or shown: tokens of hubs and trackers, and passwords in addresses."""

from __future__ import annotations

import os
import re

HIDDEN = "(hidden)"
NAMES = re.compile(r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
"""Names of environment variables whose values are secret."""

LEAST = 8
"""Characters of a value that is taken for a secret: a shorter one would hide ordinary words."""

SHAPES = (
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), HIDDEN),
    (re.compile(r"\b(?:ghp|gho|ghs|glpat|sk|rpa)[_-][A-Za-z0-9_-]{20,}"), HIDDEN),
    (re.compile(r"(?<=://)[^/\s@:\"']*:[^/\s@\"']+(?=@)"), HIDDEN),
    (re.compile(r"(?i)([?&](?:access_?|auth_?|api_?)?(?:token|key)=)[^&\s\"']{8,}"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(authorization: ?\w+ )[^\s\"']{8,}"), rf"\1{HIDDEN}"),
)
"""What secrets look like wherever they come from, and what stands there instead."""


def redacted(text: str) -> str:
    """The text without secrets: those of this process's environment, and whatever looks like one."""
    for name, value in os.environ.items():
        plain = len(value) < LEAST or value.isdigit() or os.sep in value[:1]  # a word, a limit, a file's path
        if not plain and value in text and NAMES.search(name):
            text = text.replace(value, HIDDEN)
    for shape, instead in SHAPES:
        text = shape.sub(instead, text)
    return text

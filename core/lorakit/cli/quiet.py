"""Keeping the terminal for what lorakit says."""

from __future__ import annotations

import os


def hush() -> None:
    """Keep the bars and notices of the model libraries from the terminal; what matters is said by events."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()

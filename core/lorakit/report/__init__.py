"""A run as one HTML page that needs nothing else: figures, plots, pictures, warnings, the plan, the recommendation."""

from __future__ import annotations

from lorakit.report.page import html, write
from lorakit.report.watching import reported

__all__ = ["html", "reported", "write"]

"""What is odd about a folder of pictures, before anything is taught with it."""

from __future__ import annotations

from lorakit.audit.findings import KINDS, Finding, Kind, Weight
from lorakit.audit.report import Asked, Report, audit

__all__ = ["KINDS", "Asked", "Finding", "Kind", "Report", "Weight", "audit"]

"""[[data]] tables in the making, and the training resolution that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorakit.importers.draft import Draft, objection_to
from lorakit.importers.report import Fate, shown


class Entry:
    """One [[data]] table, from the keys below `prefix`."""

    def __init__(self, draft: Draft, prefix: str) -> None:
        self.draft, self.prefix = draft, prefix
        self.table: dict[str, Any] = {}

    def put(self, key: str, setting: str, value: Any, why: str = "", fate: Fate | None = None) -> None:
        """Set a setting of the table from a key that the file says; one that no setting can have is refused."""
        if not self.draft.has(f"{self.prefix}{key}"):
            self.draft.tell(f"{self.prefix}{key}", "carried", "null: as unsaid")
            return
        objection = objection_to("data", [{"folder": "x", **({} if setting == "folder" else {setting: value})}])
        if objection:
            self.draft.tell(f"{self.prefix}{key}", "refused", objection)
            return
        self.table[setting] = value
        became = f"data.{setting} = {shown(value)}"
        self.draft.tell(f"{self.prefix}{key}", fate or ("changed" if why else "carried"), why, became)


def keep(draft: Draft, entry: Entry, key: str, folder: str, why: str = "") -> bool:
    """Name the folder of a table, once in the whole file; a second time everything about it is refused."""
    earlier = [one["folder"] for one in draft.table.get("data", ())]
    if folder in earlier:
        for leaf in list(draft.below(entry.prefix)):
            draft.tell(leaf.key, "refused", f"{shown(folder)} is named already; repeats show its pictures more often")
        return False
    entry.put(key, "folder", folder, why)
    if "folder" in entry.table:
        draft.table.setdefault("data", []).append(entry.table)
    return "folder" in entry.table


def resolve(draft: Draft, entries: Sequence[Entry]) -> None:
    """Say a resolution that all tables share once, for the run."""
    sides = {entry.table.get("resolution") for entry in entries}
    if len(sides) == 1 and None not in sides:
        draft.put("", "train.resolution", sides.pop())
        for entry in entries:
            del entry.table["resolution"]

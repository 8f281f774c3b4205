"""A folder in which the pages' command lines run as they stand: what a line names is there, and training is short."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lorakit import Kit, cli
from lorakit.control import Control
from lorakit.engine import checkpoint
from lorakit.events import UpdateFinished
from tests.docs.kept import NAME, RUN, RUN_TOML, SMALL, TEXTS, Kept, asked_of_toy, fill
from tests.docs.pages import ROOT, blocks
from tests.docs.shell import Line

PICTURES = ("pictures", "more_pictures", "PICTURES", "dataset/40_maya_char", "dataset/20_maya_char_realbody")
SHORT = [
    word
    for section, table in SMALL.items()
    for name, value in table.items()
    for word in ("--set", f"{section}.{name}={json.dumps(value)}")
]
"""What makes a training short, as a command line says it."""
DRAWN = ["--size", "32", "--steps", "2"]
"""What makes a drawing quick."""


class Sandbox:
    """A page's place: everything that its lines take for granted."""

    def __init__(self, place: Path, kept: Kept, patch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        self.place, self.kept, self._patch, self._under_way = place, kept, patch, ExitStack()
        self._training: threading.Thread | None = None
        patch.chdir(place)
        patch.setattr(constants, "HF_HUB_CACHE", str(kept.hub))
        patch.syspath_prepend(str(place))
        (place / "docs").symlink_to(ROOT / "docs")
        for number, folder in enumerate(PICTURES):
            fill(place / folder, 3 + number)
        files = {block.file: block.text for block in blocks("python", "toml") if block.file}
        for name, text in {**TEXTS, **files}.items():
            (place / name).write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Stop what is still under way, and forget what was imported from here."""
        self._under_way.close()

    def run(self, line: Line) -> int:
        """The exit code of a line."""
        for name, value in line.environment.items():
            self._patch.setenv(name, value)
        for word in line.words:
            if word not in line.written and line.command != "ctl":
                self._provide(word)
        words = self._prepared(line, list(line.words))
        if not line.output:
            return cli.run(words)
        with Path(line.output).open("w", encoding="utf-8") as file, redirect_stdout(file):
            return cli.run(words)

    # -- what lines name ---------------------------------------------------------------------------------------------

    def _provide(self, word: str) -> None:
        """Make what a word names, if it is one of the things that the pages take for granted."""
        path, first = self.place / word, word.partition("/")[0]
        if path.exists():
            return
        if word == "run.toml":
            path.write_text(RUN_TOML, encoding="utf-8")
        elif Path(word) == RUN:
            shutil.copytree(self.kept.run, path)
        elif first == "models":
            shutil.copytree(self.kept.judges, self.place / first)
        elif word.endswith(".safetensors"):
            shutil.copy(self.kept.files / word, path)
        elif word.startswith("model.config="):
            name = word.partition("=")[2]
            shutil.copytree(self.kept.files / name, self.place / name)

    def _plugin(self, words: list[str]) -> None:
        """Install the plugin of a family that is not of the house: the example, or one that `new-plugin` wrote."""
        if "hello" in words:
            self._install("hello", "lorakit_hello")
        elif "acme" in words:
            assert cli.run(["new-plugin", "acme", "--kind", "family"]) == 0
            self._patch.syspath_prepend(str(self.place / "lorakit-acme"))
            self._under_way.callback(_forget, "lorakit_acme")
            self._install("acme", "lorakit_acme")

    def _install(self, name: str, module: str) -> None:
        """Let an importable package be found as an installed plugin."""
        about = self.place / f"lorakit_{name}-0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lorakit-{name}\nVersion: 0\n")
        (about / "entry_points.txt").write_text(f"[lorakit]\n{name} = {module}\n")

    # -- what makes lines short --------------------------------------------------------------------------------------

    def _prepared(self, line: Line, words: list[str]) -> list[str]:
        """The line's arguments, with what makes it short behind them; what it needs is under way or stands there."""
        if "LOWVRAM_GB" in line.environment:
            self._install("lowvram", "lorakit_lowvram:PLUGIN")
        if "--family" in words:
            self._plugin(words)
        if line.command == "train" and "--gpus" in words:
            return ["plan" if word == "train" else word for word in words]
        if line.command == "train" or (line.command == "compare" and "--train" in words):
            return words + SHORT
        if line.command == "resume":
            shutil.rmtree(self.place / RUN)
            shutil.copytree(self.kept.run, self.place / RUN)
        elif line.command == "ctl":
            self._train_meanwhile()
        elif line.command == "grid":
            self._renumber([int(one) for before, one in pairwise(words) if before == "--checkpoint"])
        return words + DRAWN if line.command in ("sample", "grid") else words

    def _renumber(self, updates: list[int]) -> None:
        """Put the run's last checkpoint under the updates that a line names too."""
        run = self.place / RUN
        state = checkpoint.load(run, 2, torch.device("cpu"))
        (lora,) = checkpoint.folder_of(run, 2).glob(f"{NAME}-*.safetensors")
        for update in updates:
            name = f"{NAME}-{update:06d}.safetensors"
            checkpoint.save(run, replace(state, update=update), name, lora.read_bytes())

    def _train_meanwhile(self) -> None:
        """Let a run be under way in another thread, until the block ends or a line stops it."""
        if self._training is not None:
            return
        started, control, kit = threading.Event(), Control(), Kit()
        plan = kit.plan({**asked_of_toy(self.place, updates=1_000_000), "save": {"every": 0}})

        def train() -> None:
            for event in kit.train(plan, control):
                if isinstance(event, UpdateFinished):
                    started.set()

        self._training = threading.Thread(target=train)
        self._training.start()
        self._under_way.callback(self._training.join)
        self._under_way.callback(control.stop, "the block ended")
        assert started.wait(60)


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]

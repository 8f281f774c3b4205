"""`pytest --lorakit-family NAME`: a test for each promise of an installed family, with no test file to be written.

pytest imports this module in every run where lorakit is installed, so nothing but pytest is imported at its top, and
without the option it adds no test.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lorakit import Family, Kit
    from lorakit.testing.bench import Bench
    from lorakit.testing.promise import Promise

FAMILY, VARIANT = "--lorakit-family", "--lorakit-variant"
TRIED = pytest.StashKey["list[Tried]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two options."""
    group = parser.getgroup("lorakit", "lorakit: the promises of model families")
    group.addoption(
        FAMILY,
        action="append",
        default=[],
        metavar="NAME",
        help="try every promise of an installed family on its toy, a test each; may be given again",
    )
    group.addoption(VARIANT, metavar="NAME", help="the family's variant; its usual one where none is named")


def pytest_configure(config: pytest.Config) -> None:
    """Find the families, so that a wrong name is told before anything is collected."""
    names, variant = dict.fromkeys(config.getoption(FAMILY)), config.getoption(VARIANT)
    if variant and not names:
        raise pytest.UsageError(f"{VARIANT} has no effect without {FAMILY}")
    config.stash[TRIED] = [Tried(name, variant) for name in names]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, Any]:
    """The promises stand beside whatever else the session collects."""
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        for one in collector.config.stash[TRIED]:
            report.result.append(Promises.from_parent(collector, name=one.title, nodeid=one.title, tried=one))
    return report


class Tried:
    """A family that is tried, with core and the plugin that brings it; nothing else that is installed is heard."""

    def __init__(self, name: str, variant: str | None) -> None:
        from lorakit import Kit, LorakitError

        try:
            installed = Kit()
            installed.shelves.families.find(name, FAMILY)
            owner = installed.shelves.families.owner(name)
            brought = {one.name: one.module for one in installed.plugins if one.name == owner}
            self.kit: Kit = Kit(discover=False, plugins=brought)
        except LorakitError as error:
            raise pytest.UsageError(str(error)) from error
        self.family: Family = self.kit.shelves.families[name]
        if variant is not None and variant not in self.family.variants:
            known = ", ".join(self.family.variants)
            raise pytest.UsageError(f"{name} has no variant '{variant}'. Set in {VARIANT}. Known: {known}.")
        self.variant = variant
        self.title = f"{name} {variant}" if variant else name
        self._aside: tempfile.TemporaryDirectory[str] | None = None

    @cached_property
    def bench(self) -> Bench:
        """Where all promises of the family are tried, one after another."""
        from lorakit.testing.bench import Bench

        self._aside = tempfile.TemporaryDirectory(prefix="lorakit-")
        return Bench(self.family, Path(self._aside.name), self.variant, self.kit)

    def close(self) -> None:
        """Remove what was made."""
        if self._aside is not None:
            self._aside.cleanup()


class Promises(pytest.Collector):
    """The promises of one family."""

    def __init__(self, *, tried: Tried, **given: Any) -> None:
        super().__init__(**given)
        self._tried = tried

    def collect(self) -> Iterator[Kept]:
        """A test for each promise, in the order in which later ones rest on earlier ones."""
        from lorakit.testing import PROMISES

        for promise in PROMISES:
            yield Kept.from_parent(self, name=promise.name, promise=promise, tried=self._tried)

    def teardown(self) -> None:
        """After the family's last promise."""
        self._tried.close()


class Kept(pytest.Item):
    """The test that a promise is kept."""

    def __init__(self, *, promise: Promise, tried: Tried, **given: Any) -> None:
        super().__init__(**given)
        self._promise, self._tried = promise, tried

    def runtest(self) -> None:
        """Try it; what was seen is in the JUnit report."""
        self.user_properties.append(("seen", self._promise.keep(self._tried.bench)))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What was found and what that means, in a paragraph; the trace too where `--tb=long` asks for it."""
        from lorakit.testing import PromiseError

        if isinstance(excinfo.value, PromiseError) and self.config.getoption("tbstyle") != "long":
            return f"{excinfo.value}\n(--tb=long shows where)"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """How reports call it."""
        return self.path, None, f"{self._tried.title}: {self._promise.name}"

"""`pytest --lorakit-family`: a test for each promise, and nothing at all where nobody asks."""

import subprocess
import sys

import pytest

from lorakit.testing import PROMISES
from tests.docs.pages import ROOT

pytest_plugins = ["pytester"]

PLUGIN = "lorakit.testing.pytest_plugin"
BROKEN = """
import lorakit_hello
from lorakit_hello import Hello

import lorakit


class Bare(Hello):
    name = "bare"
    lora_targets = ()


@lorakit.hookimpl
def register(registry):
    registry.family(Bare())
"""


@pytest.fixture
def installed(pytester, monkeypatch):
    """A place where the example family and a broken one are installed plugins."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples" / "lorakit-hello"))
    monkeypatch.syspath_prepend(str(pytester.path))
    pytester.makepyfile(lorakit_bare=BROKEN)
    about = pytester.mkdir("lorakit_tried-7.dist-info")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lorakit-tried\nVersion: 7\n")
    (about / "entry_points.txt").write_text("[lorakit]\nbare = lorakit_bare\nhello = lorakit_hello\n")
    return lambda *words: pytester.runpytest_inprocess("-p", PLUGIN, "-p", "no:cacheprovider", *words)


def test_each_promise_is_a_test_of_its_name(installed):
    done = installed("--lorakit-family", "hello", "--collect-only", "-q")
    assert done.ret == 0
    names = [line.partition("::")[2] for line in done.outlines if line.startswith("hello::")]
    assert names == [promise.name for promise in PROMISES]


def test_what_is_kept_passes_and_stands_beside_the_authors_own_tests(installed, pytester):
    pytester.makepyfile(test_own="def test_own_rules(): pass")
    done = installed("--lorakit-family=hello", "-k", "facts or order-free or own", "-v", "--junit-xml=seen.xml")
    done.assert_outcomes(passed=3, deselected=len(PROMISES) - 2)
    done.stdout.fnmatch_lines(
        ["*test_own_rules PASSED*", "*facts are complete PASSED*", "*rules are order-free PASSED*"]
    )
    assert 'name="seen" value="1 variants, 6 targets' in (pytester.path / "seen.xml").read_text()


def test_a_broken_promise_is_a_paragraph_that_says_what_it_means(installed):
    done = installed("--lorakit-family", "bare", "--lorakit-family", "hello", "-k", "facts")
    done.assert_outcomes(passed=1, failed=1, deselected=2 * (len(PROMISES) - 1))
    done.stdout.fnmatch_lines(
        [
            "*bare: facts are complete*",
            "the family 'bare' breaks the promise 'facts are complete'. lora_targets of bare is no list of names*"
            f"{PROMISES[0].broken}",
        ]
    )
    assert "Traceback" not in done.stdout.str()
    assert "of_facts.py" not in done.stdout.str()
    long = installed("--lorakit-family", "bare", "-k", "facts", "--tb=long").stdout.str()
    assert "of_facts.py" in long


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--lorakit-family", "helo"), "there is no family 'helo'. Set in --lorakit-family. Did you mean 'hello'?"),
        (("--lorakit-family", "hello", "--lorakit-variant", "xl"), "hello has no variant 'xl'. Set in --lorakit-varia"),
        (("--lorakit-variant", "base"), "--lorakit-variant has no effect without --lorakit-family"),
    ],
)
def test_a_wrong_name_is_a_usage_error(installed, words, said):
    done = installed(*words)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in done.errlines if line]
    assert line.startswith(f"ERROR: {said}")


def test_a_named_variant_is_tried(installed):
    done = installed("--lorakit-family", "hello", "--lorakit-variant", "base", "-k", "facts", "-v")
    done.assert_outcomes(passed=1, deselected=len(PROMISES) - 1)
    done.stdout.fnmatch_lines(["hello base::facts are complete PASSED*"])


def test_nothing_is_imported_and_nothing_added_where_nobody_asks(pytester):
    """pytest finds the plugin by its entry point, in every run where lorakit is installed."""
    pytester.makepyfile(
        test_own="""
        import sys

        def test_own():
            ours = {name for name in sys.modules if name.partition(".")[0] == "lorakit"}
            assert ours == {"lorakit", "lorakit.version", "lorakit.testing", "lorakit.testing.pytest_plugin"}
            assert not {"torch", "pydantic", "click", "numpy"} & set(sys.modules)
        """
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider"]
    done = subprocess.run([*words, "-p", "no:xdist"], cwd=pytester.path, capture_output=True, text=True, timeout=120)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_entry_point_and_the_option_p_are_one_plugin(pytester):
    """The entry point has the module's own name, under which `-p` and `pytest_plugins` look for it."""
    import tomli

    entries = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert entries == {PLUGIN: PLUGIN}
    pytester.makeconftest(f"pytest_plugins = ['{PLUGIN}']")
    done = pytester.runpytest_inprocess("-p", PLUGIN, "--help")
    assert done.ret == 0
    done.stdout.fnmatch_lines(["*--lorakit-family=NAME*"])

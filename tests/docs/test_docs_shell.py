"""Every shell block of the pages runs: each line as it stands, with toys in the place of published models."""

import pytest

from tests.docs import shell
from tests.docs.kept import Kept
from tests.docs.pages import blocks
from tests.docs.sandbox import Sandbox

SHELL = blocks("sh")
RUN = [block for block in SHELL if not block.mark.startswith(shell.NOT_RUN)]
MOST = 12
"""How many blocks may say that they are not run."""


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def sandbox(tmp_path, kept, monkeypatch):
    made = Sandbox(tmp_path, kept, monkeypatch)
    yield made
    made.close()


def _case(block):
    marks = [pytest.mark.thorough] if " --train " in block.text else []  # three trainings at once
    return pytest.param(block, id=block.name, marks=[pytest.mark.slow, *marks])


@pytest.mark.parametrize("block", [_case(block) for block in RUN])
def test_shell_blocks_run(block, sandbox, capsys):
    found, expected = shell.lines(block.text, block.name), shell.expected(block.mark, block.name)
    assert found, f"{block.name} has no line"
    for line in found:
        code = sandbox.run(line)
        said = capsys.readouterr()
        assert code == expected, f"{block.name}: {line.text} left with {code}: {said.out}{said.err}"
        missing = [file for file in line.written if not (sandbox.place / file).is_file()]
        assert not missing, f"{block.name}: {line.text} did not write {missing}"


def test_few_blocks_are_not_run_and_each_says_why():
    marked = [block for block in SHELL if block not in RUN]
    told = "\n".join(f"{block.name}: {block.mark}" for block in marked)
    assert all(len(block.mark) > len(shell.NOT_RUN) + 10 for block in marked), f"say why:\n{told}"
    assert len(marked) <= MOST, f"{len(marked)} blocks are not run, which is too many:\n{told}"
    assert len(RUN) > 40
    assert not blocks("bash", "shell", "console"), "call the block sh, so that it runs"


def test_a_line_that_does_not_work_is_seen(sandbox, capsys):
    (wrong,) = shell.lines("lorakit plan --family qwen --data nowhere --trigger sks\n", "here")
    assert sandbox.run(wrong) == 2
    assert "nowhere" in capsys.readouterr().err
    (silent,) = shell.lines("lorakit families -o families.txt\n", "here")
    assert silent.written == ["families.txt"]


def test_lines_are_read_as_a_shell_reads_them():
    text = "A=1 lorakit --plugin x.py plan \\\n  --set 'a b' # why\n\nlorakit schema > x.json\n"
    first, second = shell.lines(text, "here")
    assert (first.environment, first.command, first.words[-1]) == ({"A": "1"}, "plan", "a b")
    assert (second.command, second.words, second.written) == ("schema", ("schema",), ["x.json"])


@pytest.mark.parametrize("text", ["pip install x", "make demo", "lorakit plan | head", "cd x && lorakit plan"])
def test_what_the_tests_cannot_run_needs_a_mark(text):
    with pytest.raises(ValueError, match="mark its block with the reason"):
        shell.lines(text, "here")


def test_the_mark_of_an_exit_code_needs_a_reason():
    assert shell.expected("", "here") == 0
    assert shell.expected("leaves with 1: something was found", "here") == 1
    for mark in ("leaves with 1", "leaves with 1: x", "never mind"):
        with pytest.raises(ValueError, match="unknown mark"):
            shell.expected(mark, "here")

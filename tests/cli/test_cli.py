"""What the commands print."""

import json
import subprocess
import sys

import pytest
import tomli
from PIL import Image

from lorakit import Kit
from lorakit.cli import run


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "40_maya"
    made.mkdir()
    for number in range(3):
        Image.new("RGB", (1024, 1024), (40 * number, 90, 120)).save(made / f"{number}.png")
        (made / f"{number}.txt").write_text(f"portrait {number}")
    return made


def printed(capsys, *arguments):
    assert run(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def test_the_printed_plan_is_toml_that_means_the_same_plan(capsys, tmp_path, folder):
    arguments = ["--family", "qwen", "--data", folder, "--trigger", "maya", "--set", "optimizer.warmup=10"]
    text = printed(capsys, "plan", *arguments)
    file = tmp_path / "run.toml"
    file.write_text(text)
    table = tomli.loads(text)
    assert table["train"]["epochs"] == 10
    kit = Kit()
    first = kit.plan({**table})
    again = json.loads(printed(capsys, "plan", "--config", file, "--json"))
    assert again["settings"] == json.loads(first.to_json())["settings"]
    assert again["arithmetic"]["passes_per_epoch"] == 120


def test_the_printed_plan_says_who_decided_and_why(capsys, folder):
    text = printed(capsys, "plan", "--family", "qwen", "--data", folder, "--set", "lora.rank=8")
    lines = {line.split(" = ")[0].strip(): line for line in text.splitlines() if " = " in line}
    assert lines["rank"].endswith("# --set lora.rank=8")
    assert lines["learning_rate"].endswith("# preset qwen/character")
    assert "int8" in text
    assert "because" not in lines["seed"]
    assert "# the run      10 epochs = 300 updates = 1200 passes" in text


@pytest.mark.parametrize("command", ["families", "presets", "plugins"])
def test_lists_are_there_for_people_and_for_programs(capsys, command):
    text = printed(capsys, command)
    rows = json.loads(printed(capsys, command, "--json"))
    assert rows
    for row in rows:
        assert str(next(iter(row.values()))) in text


def test_schema_is_json(capsys):
    assert json.loads(printed(capsys, "schema"))["title"] == "lorakit run"


def test_help_names_every_command(capsys):
    text = printed(capsys, "--help")
    for command in ("train", "plan", "families", "presets", "plugins", "resume", "schema"):
        assert f"\n  {command} " in text


def test_without_leaves_a_plugin_out(capsys):
    assert "qwen" not in printed(capsys, "--without", "qwen", "families")


def test_a_plugin_file_adds_a_command(capsys, tmp_path):
    file = tmp_path / "greeting.py"
    file.write_text(
        "import click\nfrom lorakit import hookimpl\n"
        "@hookimpl\ndef register_commands(cli):\n"
        "    @cli.command()\n    def greet():\n        click.echo('hello')\n"
    )
    assert printed(capsys, "--plugin", file, "greet") == "hello\n"


def test_planning_in_a_process_of_its_own_imports_no_torch(folder):
    code = (
        "import sys; from lorakit.cli import run; "
        f"code = run(['plan', '--family', 'qwen', '--data', {str(folder)!r}]); "
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'peft'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

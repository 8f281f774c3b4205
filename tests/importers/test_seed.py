"""The first users' own YAML: every key is told of, it is read as it was meant, and its toy run trains."""

import json
from pathlib import Path

import pytest
import tomli

from lorakit import Kit
from lorakit.cli import run
from lorakit.events import RunFinished
from lorakit.importers import read
from tests.pictures import picture

SEED = Path(__file__).parents[2] / "docs" / "examples" / "ai-toolkit.yaml"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with the seed's two folders, of 7 and 3 small pictures."""
    for name, count in (("40_maya_char", 7), ("20_maya_char_realbody", 3)):
        for number in range(count):
            picture(tmp_path / "dataset" / name / f"{number}.png", (48, 48), caption=f"maya_char, portrait {number}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def imported():
    return Kit().imported(SEED)


def told(imported):
    return {line.key: line for line in imported.lines}


def test_every_key_of_the_file_is_told_of(imported):
    keys = {leaf.key.replace("config.process[0].", "") for leaf in read(SEED).leaves}
    assert len(keys) > 40
    assert keys == {line.key for line in imported.lines if line.said}
    assert not [line for line in imported.lines if line.fate == "unknown"]


def test_lines_are_those_of_the_file(imported):
    text = SEED.read_text().splitlines()
    for line in imported.lines:
        if line.said:
            last = line.key.rpartition(".")[2]
            assert last in text[line.line - 1] or last in text[line.line - 2], line  # a list begins below its key


def test_it_is_read_as_meant(imported):
    table, lines = imported.table, told(imported)
    assert (table["family"], table["variant"], table["quantization"]["name"]) == ("qwen", "edit-2509", "int8")
    assert lines["model.is_qwen"].fate == lines["model.quantize_dtype"].fate == lines["device"].fate == "dead"
    assert "arch" in lines["model.is_qwen"].why
    assert "qtype" in lines["model.quantize_dtype"].why
    assert table["train"]["resolution"] == 1024
    assert "1024²" in lines["datasets[0].resolution"].why
    assert [one["folder"] for one in table["data"]] == ["dataset/40_maya_char", "dataset/20_maya_char_realbody"]
    assert not any("repeats" in one for one in table["data"]), "the names decide"
    assert "40 times" in lines["datasets[0].folder_path"].why
    assert "ai-toolkit the name means nothing" in lines["datasets[0].folder_path"].why
    assert table["train"]["updates"] == 850
    assert table["save"] == {"every": 85, "keep": 10, "dtype": "fp16"}
    assert table["sampling"]["every"] == 85
    assert table["sampling"]["guidance"] == 3.5
    assert table["sampling"]["negative"] == "low quality, blurry, artifacts"
    assert len(table["sampling"]["prompts"]) == 3
    assert table["lora"] == {"rank": 16, "alpha": 16.0}
    assert table["optimizer"]["learning_rate"] == 2e-4
    assert table["preset"] == "none", "no preset may stand below what the file says"


def test_the_average_is_kept_and_its_horizon_told(imported):
    assert imported.table["train"]["ema"] == 0.999
    why = told(imported)["train.ema_config.ema_decay"].why
    assert "1,000 updates and the run has 850" in why
    assert "43%" in why  # 0.999 ** 850 = 0.427
    assert "0.976" in why  # a horizon of 5 % of the run: 1 - 1 / 42.5


def test_the_length_is_told_with_its_arithmetic(here):
    finding = " ".join(Kit().imported(SEED).findings)
    assert "3,400 passes" in finding
    assert "makes 850 updates" in finding
    assert "every 85 updates makes 10" in finding
    assert "'Every epoch (3400 / 10)'" in finding
    assert "By the folders' repeats an epoch is 7 x 40 + 3 x 20 = 340 passes, so that is 10 epochs" in finding


@pytest.mark.parametrize("key", ["      epochs: 10", "      num_epochs: 10"])
def test_epochs_beside_steps_are_a_contradiction_with_a_reading(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "with_epochs.yaml"
    place = "        steps: 3400\n"
    text = SEED.read_text()
    assert place in text
    file.write_text(text.replace(place, f"{place}  {key}\n"))
    imported = Kit().imported(file)
    finding = " ".join(imported.findings)
    assert f"train.{key.strip().split(':')[0]} = 10 would be" in finding
    assert "34,000 passes and 8,500 updates, which contradicts that" in finding
    assert imported.table["train"]["updates"] == 850
    assert "epochs" not in imported.table["train"]


def test_the_toml_is_the_same_run(here, capsys):
    assert run(["import", str(SEED), "-o", "run.toml"]) == 0
    said = capsys.readouterr().out
    for word in ("carried", "changed", "dead", "is_qwen", "850 updates"):
        assert word in said
    assert run(["plan", "--config", "run.toml", "--json"]) == 0
    by_toml = json.loads(capsys.readouterr().out)
    assert run(["plan", "--config", str(SEED), "--json"]) == 0
    by_yaml = json.loads(capsys.readouterr().out)
    assert by_toml["settings"] == by_yaml["settings"]
    assert by_yaml["arithmetic"]["passes_per_epoch"] == 340
    notes = [problem["message"] for problem in by_yaml["problems"]]
    assert [note for note in notes if note.startswith("ai-toolkit.yaml line 57, dead: model.is_qwen")]
    assert [note for note in notes if "datasets[*].resolution" in note], "alike lines of both folders are told once"
    assert by_yaml["choices"]["optimizer.learning_rate"]["decided_by"] == f"{SEED} line 47"
    table = tomli.loads(Path("run.toml").read_text())
    assert table == {**json.loads(json.dumps(dict(Kit().imported(SEED).table)))}


def test_without_o_the_toml_is_printed_and_the_report_kept_apart(here, capsys):
    assert run(["import", str(SEED)]) == 0
    printed = capsys.readouterr()
    assert tomli.loads(printed.out)["trigger"] == "maya_char"
    assert "is_qwen" in printed.err
    assert run(["import", str(SEED), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["table"]["train"]["updates"] == 850
    assert {line["fate"] for line in found["lines"]} == {"carried", "changed", "dead"}


def test_set_stands_above_the_file(here, capsys):
    assert run(["plan", "--config", str(SEED), "--set", "train.epochs=1", "--set", "save.every=epoch", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["settings"]["train"]["updates"] == 85  # 340 passes of accumulation 4
    assert plan["settings"]["save"]["every"] == "epoch"


TOY = {
    "model.source": "toy", "train.resolution": 48, "train.updates": 3, "train.reference_resolution": 48,
    "sampling.width": 48, "sampling.height": 48, "sampling.steps": 2, "sampling.every": 0, "sampling.strengths": [],
}  # fmt: skip


@pytest.mark.slow
def test_the_toy_run_of_the_whole_file_trains(here, capsys):
    """Folders and model are small; int8, adamw8bit, the average, the edit template and the rest are the file's."""
    sets = [word for key, value in TOY.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    assert run(["train", "--config", str(SEED), "--json", *sets]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["event"] == RunFinished.__name__
    assert Path("output/qwen_character_lora/qwen_character_lora.safetensors").stat().st_size > 1000
    assert Path("output/qwen_character_lora/qwen_character_lora-raw.safetensors").exists(), "the last weights too"

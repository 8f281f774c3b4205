"""`lorakit recover` on the command line."""

import json

import pytest

from lorakit.cli import run


def recover(tmp_path, *more):
    plain = [
        "recover",
        "--family",
        "qwen",
        "--preset",
        "toy",
        "--output",
        tmp_path / "runs",
        "--samples",
        "2",
        "--updates",
        "1",
    ]
    return run([str(one) for one in (*plain, "--rank", "2", "-o", tmp_path / "made.safetensors", *more)])


@pytest.mark.thorough
@pytest.mark.slow
def test_an_adapter_of_neutral_captions_as_json(capsys, tmp_path):
    assert recover(tmp_path, "--model", "toy", "--quantization", "int2", "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(event["event"] == "LayerRecovered" for event in events) == 56
    assert events[-1]["event"] == "RecoveryFinished"
    assert (tmp_path / "made.safetensors").is_file()
    assert json.loads((tmp_path / "made.json").read_text())["before"] > 0
    assert recover(tmp_path, "--quantization", "int2") == 2
    assert "there is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--quantization", "none"), "full precision needs no recovery"),
        (("--quantization", "int3"), "Known are"),
        (("--quantization", "int2", "--set", "quantization.recovery=gone.safetensors"), "no recovery adapter"),
        (("--quantization", "int2", "-o", "made.bin"), "not called .safetensors"),
        (("--quantization", "int2", "--source", "nowhere/at/all"), "no model folder"),
    ],
)
def test_bad_input(capsys, tmp_path, arguments, says):
    assert recover(tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1

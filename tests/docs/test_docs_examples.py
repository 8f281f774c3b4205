"""What the pages say that a command prints, or a run leaves, is what it prints and leaves."""

import json
import re

import pytest
from PIL import Image
from safetensors import safe_open

from lorakit import cli
from lorakit.kit import Kit
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs"
FILES = {block.file: block.text for block in blocks("python") if block.file}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with one small picture and every plugin file of the pages."""
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "pictures" / "1.png")
    (tmp_path / "pictures" / "1.txt").write_text("a teal square, plain", encoding="utf-8")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(capsys, *words):
    code = cli.run(words)
    said = capsys.readouterr()
    return code, said.out + said.err


PLAN = ("--plugin", "house_rules.py", "plan", "--family", "qwen", "--preset", "none", "--data", "pictures")


def test_the_rule_plugin_decides_refuses_and_checks(here, capsys):
    code, said = _run(capsys, *PLAN, "--trigger", "sks")
    assert code == 0
    assert re.search(r'\[quantization\]\nname = "none" +# house_rules: our cards have 80 GB', said)
    code, said = _run(capsys, *PLAN, "--trigger", "sks", "--set", "quantization.name=int8")
    assert (code, 'name = "int8"' in said) == (0, True)
    code, said = _run(capsys, *PLAN, "--trigger", "sks", "--set", "sampling.steps=2")
    assert (code, "two steps show nothing" in said) == (2, True)
    code, said = _run(capsys, *PLAN)
    assert (code, "our library needs a trigger word" in said) == (2, True)


def test_the_command_plugin(here, capsys):
    assert _run(capsys, "--plugin", "house_nouns.py", "hello") == (0, "hello\n")
    code, said = _run(
        capsys, "--plugin", "house_nouns.py", "plan", "--family", "qwen", "--data", "pictures", "--trigger", "sks"
    )
    assert code == 0
    assert re.search(r'timesteps = "shift" +# house_nouns: our pictures are large', said)


def test_the_plugins_of_the_pages_in_a_run_and_what_it_leaves(here, capsys):
    kit = Kit(files=[here / "house_rules.py", here / "house_sgd.py"])
    wanted = {
        "family": "qwen",
        "preset": "toy",
        "trigger": "sks",
        "data": [{"folder": "pictures"}],
        "optimizer": {"name": "sgd"},
        "train": {"updates": 1},
        "sampling": {"steps": 3, "every": 1, "prompts": ["sks"]},
        "save": {"every": 1},
    }
    last = list(kit.train(kit.plan(wanted)))[-1]
    assert f"for the library: {last.lora}" in capsys.readouterr().out
    run = here / "runs" / "sks"
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    number = "update-000001"
    assert left == {
        "plan.json",
        "events.jsonl",
        "sks.safetensors",
        "sks.workflow.api.json",
        "report.html",
        f"checkpoints/{number}/sks-000001.safetensors",
        f"checkpoints/{number}/state.safetensors",
        f"checkpoints/{number}/state.json",
        "samples/000001-0.png",
        "samples/strengths.png",
    }
    _metadata_is_explained(run / "sks.safetensors")
    modules = re.search(r"diffusers (\d+)/\1 modules, scale 1\.000 \| ComfyUI keys \1/\1", last.proof)
    assert modules
    for page in (ROOT / "README.md", PAGE / "files.md"):
        assert modules[0] in page.read_text(encoding="utf-8")


def _metadata_is_explained(file):
    text = (PAGE / "files.md").read_text(encoding="utf-8")
    with safe_open(file, "pt") as opened:
        written, names = opened.metadata(), set(opened.keys())
    explained = set(re.findall(r"`((?:modelspec|ss|sshs|lorakit|format)[._]?\w*)`", text.split("## The proof")[0]))
    assert set(written) <= explained
    assert explained <= {*written, "ss_network_alpha"}
    assert json.loads(written["ss_tag_frequency"]) == {"pictures": {"sks": 1, "a teal square": 1, "plain": 1}}
    assert re.search(r"^(transformer\S+lora_A\.weight)", text, re.M)[1] in names


def _folder(root, name, count):
    (root / name).mkdir(parents=True)
    square = Image.new("RGB", (1024, 1024), "teal")
    square.save(root / name / "0.jpg")
    for number in range(count):
        (root / name / f"{number}.jpg").write_bytes((root / name / "0.jpg").read_bytes())
        (root / name / f"{number}.txt").write_text(f"portrait {number}", encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "folders"),
    [
        ("units.md", {"dataset/40_maya_char": 70, "dataset/20_maya_char_realbody": 30}),
        ("tutorial.md", {"pictures": 20}),
    ],
)
def test_arithmetic_in_the_pages_is_what_the_commands_print(page, folders, tmp_path, monkeypatch, capsys):
    for name, count in folders.items():
        _folder(tmp_path, name, count)
    monkeypatch.chdir(tmp_path)
    text = (PAGE / page).read_text(encoding="utf-8")
    found = re.findall(r"```sh\nlorakit (plan [^\n]+)\n```\n+(?:[^`]|`[^`])*?```text\n(.*?)```", text, re.S)
    assert found
    for words, shown in found:
        code, said = _run(capsys, *words.split())
        assert code == 0
        assert not [line for line in shown.splitlines() if line not in said.splitlines()]


def test_an_edit_lora_takes_the_template_that_files_md_names(here, capsys):
    asked = ("plan", "--family", "qwen", "--variant", "edit-2509", "--data", "pictures", "--trigger", "sks")
    assert 'template = "edit"' in _run(capsys, *asked)[1]
    said = _run(capsys, *asked, "--set", "text_encoder.template=text-to-image")[1]
    assert 'template = "text-to-image"' in said

"""Files that are no configuration: one clear paragraph, exit code 2, never a traceback and nothing obeyed."""

import json
from pathlib import Path

import pytest
import tomli
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lorakit import Kit, LorakitError
from lorakit.cli import run
from lorakit.importers import importer_of, read
from lorakit.importers.document import LARGEST, Document
from lorakit.importers.written import to_toml
from lorakit.registry import Part

KIT = Kit()
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "m0: &m0 {x: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.yaml", "train: [1, 2\nmodel: {", "line 2"),
        ("a.yaml", "train:\n\tlr: 1", "line 2"),
        ("a.yaml", "train: !!python/object/apply:os.system ['touch hacked']", "not obeyed"),
        ("a.yaml", "train: !!python/name:os.system", "not obeyed"),
        ("a.yaml", "train: {lr: !secret x}", "not obeyed"),
        ("a.yaml", "train: {lr: !!int abc}", "line 1"),
        ("a.yaml", "train: {lr: !!float ''}", "line 1"),
        ("a.yaml", "train: &t {x: *t}", "nested too deeply"),
        ("a.yaml", "train: &t {<<: *t}", "holds itself"),
        ("a.yaml", "<<: 3", "merges tables"),
        ("a.yaml", "? [a, b]\n: c", "plain word"),
        ("a.yaml", "a: 1\n---\nb: 2", "document"),
        ("a.yaml", BOMB, "repeats too much"),
        ("a.yaml", "[" * 5000, "nested too deeply"),
        ("a.yaml", "a: " + "{b: " * 3000, "nested too deeply"),
        ("a.yaml", "\x00\x01", "special characters"),
        ("a.yaml", "just words", "no configuration that lorakit knows"),
        ("a.yaml", "", "no configuration that lorakit knows"),
        ("a.yaml", MERGES, "no configuration that lorakit knows"),
        ("a.json", '{"a": ', "line 1"),
        ("a.toml", "a = [1,\n", "not valid TOML"),
        ("a.toml", "x = 1", "no configuration that lorakit knows"),
        ("a.sh", "python train_dreambooth_lora_qwen_image.py --rank '4", "line 1"),
        ("a.sh", "echo hello", "no configuration that lorakit knows"),
        ("a.txt", "", "no configuration that lorakit knows"),
    ],
)
def test_refused_in_one_paragraph(tmp_path, capsys, monkeypatch, name, text, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    assert run(["import", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "hacked").exists()


def test_no_file_a_folder_and_no_text(tmp_path, capsys):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xfa")
    for path, says in (
        (tmp_path / "no.yaml", "there is no"),
        (tmp_path, "is a folder"),
        (tmp_path / "b.yaml", "UTF-8"),
    ):
        for command in (["import", str(path)], ["plan", "--config", str(path)]):
            assert run(command) == 2
            said = capsys.readouterr().err
            assert (says in said, said.count("\n")) == (True, 1), said


def refused(capsys):
    """What was said, in one paragraph."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_hundred_megabytes_are_not_read(tmp_path, capsys):
    for name in ("a.yaml", "a.sh", "a.toml"):
        file = tmp_path / name
        with file.open("wb") as opened:
            opened.truncate(100_000_000)  # sparse: it takes no disk
        assert run(["import", str(file)]) == 2
        assert f"100,000,000 bytes, and a configuration has a few thousand (at most {LARGEST:,}" in refused(capsys)
        assert run(["plan", "--config", str(file)]) == 2
        assert "100,000,000 bytes" in refused(capsys)


def test_nothing_is_overwritten(tmp_path, capsys):
    file, out = tmp_path / "a.yaml", tmp_path / "run.toml"
    file.write_text("model: {arch: qwen_image}\ntrain: {lr: 1e-4}\n")
    out.write_text("mine")
    assert run(["import", str(file), "-o", str(out)]) == 2
    assert "already" in capsys.readouterr().err
    assert run(["import", str(file), "-o", str(tmp_path / "no" / "run.toml")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run(["import", str(file), "--from", "onetrainer"]) == 2
    assert "Known: ai-toolkit, diffusers, kohya" in capsys.readouterr().err


# -- anything at all -----------------------------------------------------------------------------------------

PROCESS = [
    "network",
    "train",
    "model",
    "datasets",
    "sample",
    "save",
    "config",
    "process",
    "type",
    "ema_config",
    "training",
]
KEYS = [
    "linear", "linear_alpha", "rank", "steps", "lr", "epochs", "batch_size", "gradient_accumulation_steps",
    "gradient_accumulation", "ema_config", "use_ema", "ema_decay", "optimizer", "optimizer_params", "resolution",
    "folder_path", "caption_dropout_rate", "num_repeats", "arch", "name_or_path", "is_qwen", "quantize", "qtype",
    "quantize_dtype", "prompts", "samples", "prompt", "neg", "width", "guidance_scale", "name", "save_every", "dtype",
    "lr_scheduler", "timestep_type", "control_path", "trigger_word", "sample_every", "noise_scheduler", "weird key",
]  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["qwen_image", "Qwen/Qwen-Image", "1e-4", "~nobody/x", "40_a", "a\x7fb", "\ud83d", "0", 0.999, 4, 1024]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=12,
)
FILES = st.dictionaries(st.sampled_from(PROCESS), VALUES, min_size=1, max_size=6)


def one_paragraph(error):
    assert "\n" not in str(error)


def survives(document, importer):
    """Reading gives settings that lorakit accepts and a line for every key, or refuses in one paragraph."""
    reader = KIT.shelves.importers[importer].resolve()()
    try:
        imported = reader.read(document, KIT.shelves.families)
    except LorakitError as error:
        one_paragraph(error)
        return
    said = {line.key for line in imported.lines if line.said}
    prefixes = ("config.process[0].", "process[0].")
    for leaf in document.leaves:
        short = next((leaf.key.removeprefix(one) for one in prefixes if leaf.key.startswith(one)), leaf.key)
        assert said & {leaf.key, short, leaf.key.rpartition(".")[2]}, leaf
    assert tomli.loads(to_toml(imported)) == json.loads(json.dumps(dict(imported.table)))
    if "family" in imported.table:
        try:
            KIT.request(*imported.layers())
        except LorakitError as error:  # what two settings cannot be together
            one_paragraph(error)
    assert list(imported.notes()) is not None


@given(FILES)
def test_any_nested_yaml_is_read_or_refused(table):
    process = {key: value for key, value in table.items() if key != "process"}
    for whole in (table, {"config": {"name": "x", "process": [process]}}):
        try:
            text = yaml.safe_dump(whole, allow_unicode=True)
        except (yaml.YAMLError, UnicodeEncodeError):
            continue
        document = Document(Path("a.yaml"), text)
        try:
            importer_of(document, KIT.shelves.importers)
        except LorakitError as error:
            one_paragraph(error)
            continue
        survives(document, "ai-toolkit")


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"\n #?,%@`0123.<=~e"), max_size=60))
def test_any_text_is_read_or_refused(text):
    for name in ("a.yaml", "a.toml", "a.sh"):
        document = Document(Path(name), text)
        try:
            importer_of(document, KIT.shelves.importers)
        except LorakitError as error:
            one_paragraph(error)


FLAGS = """--network_module --network_dim --learning_rate --max_train_steps --resolution --optimizer_args --rank
--lr_warmup_steps --timestep_sampling --dit --sigmoid_scale --max_train_epochs --save_every_n_steps --instance_prompt
--save_last_n_steps --pretrained_model_name_or_path --adam_beta1 --repeats --weird 1 0 -1 1e-4 0.5 shift sigmoid
logit_normal 1024,768 a=b betas=1,2 weight_decay=x Qwen/Qwen-Image nan inf 10,10,10 True networks.lora_qwen_image
'' && ;
#"""
WORDS = st.sampled_from([*FLAGS.split(), "\\\n"])


@given(st.lists(WORDS, max_size=14), st.sampled_from(["kohya", "diffusers"]))
def test_any_command_line_is_read_or_refused(words, importer):
    script = {"kohya": "qwen_image_train_network.py", "diffusers": "train_dreambooth_lora_qwen_image.py"}[importer]
    survives(Document(Path("a.sh"), f"python {script} {' '.join(words)}\n"), importer)


def test_names_that_no_system_takes(tmp_path):
    file = tmp_path / "a.sh"
    for name in ("x" * 5000 + ".toml", "~nobody_at_all/a.toml"):
        file.write_text(
            f"train_network.py --network_module networks.lora --dataset_config {name} --config_file {name} "
            f"--sample_prompts {name.replace('toml', 'txt')} --train_data_dir {name}"
        )
        lines = {line.key: line.fate for line in KIT.imported(file, family="qwen").lines}
        assert lines["dataset_config"] == lines["config_file"] == lines["sample_prompts"] == "refused"
    file = tmp_path / "a.yaml"
    file.write_text(
        json.dumps(
            {"train": {"lr": 1e-4}, "model": {"arch": "qwen_image"}, "datasets": [{"folder_path": "4_" + "x" * 5000}]}
        )
    )
    assert KIT.imported(file).table["data"]


def test_the_parts_that_core_brings_are_importers():
    for name, part in KIT.shelves.importers.items():
        assert isinstance(part, Part)
        assert part.resolve()().recognizes(Document(Path("a.unknown"), "")) is False, name


def test_reading_is_of_the_working_folder_and_of_nothing_else(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: 1")
    assert read(file).leaves[0].value == 1

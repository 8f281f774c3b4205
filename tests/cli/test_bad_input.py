"""Everything a user may get wrong ends in one paragraph and exit code 2, with nothing half-written."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lorakit.cli import run


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "pictures"
    made.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (40 * number, 90, 120)).save(made / f"{number}.png")
        (made / f"{number}.txt").write_text("a red circle")
    return made


def refused(capsys, *arguments):
    """What lorakit says to a command line that it must refuse."""
    assert run(list(map(str, arguments))) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: "), said
    assert said.count("\n") == 1, "one paragraph"
    assert "Traceback" not in said
    return said


def train(tmp_path, folder, *more):
    plain = ["train", "--family", "qwen", "--preset", "toy", "--data", folder, "--output", tmp_path / "runs"]
    return [*plain, *more]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.bach_size=2", "Did you mean train.batch_size?"),
        ("tran.batch_size=2", "Did you mean train?"),
        ("lr=1e-4", "optimizer.learning_rate"),
        ("train.batch_size=0", "greater than or equal to 1"),
        ("train.batch_size=many", "integer"),
        ("lora.dropout=1.5", "less than 1"),
        ("train.precision=fp8", "'bf16' or 'fp32'"),
        ("save.metadata=some", "'full', 'minimal' or 'none'"),
        ("quantization.name=int9", "Known are"),
        ("optimizer.name=adan", "there is no optimizer 'adan'"),
        ("variant=edit-2510", "Known are image, edit, edit-2509, edit-2511"),
        ("scheduler.name=ddpm", "only 'flowmatch'"),
        ("scheduler.name=edm", "'edm' is not known"),
        ("scheduler.min_snr_gamma=5", "would have no effect"),
        ("scheduler.timesteps=logit", "Known are 'sigmoid'"),
        ("text_encoder.train=true", "never"),
        ("text_encoder.template=chat", "Known are"),
        ("sampling.width=70", "multiple of 16"),
        ("sampling.negative=3", "sampling.negative: should be a valid string"),
        ("sampling.recipe=crad", "Known: seed, card, comfyui"),
        ("name=../escape", "name"),
        ("train.epochs=x", "number"),
        ("nonsense", "key=value"),
        ("data=pictures", "[[data]]"),
    ],
)
def test_settings(capsys, tmp_path, folder, setting, says):
    assert says in refused(capsys, *train(tmp_path, folder, "--set", setting))
    assert not (tmp_path / "runs").exists()


def test_every_refusal_names_where_it_was_set(capsys, tmp_path, folder):
    assert "Set in --set train.batch_size=0." in refused(capsys, *train(tmp_path, folder, "-s", "train.batch_size=0"))
    file = tmp_path / "run.toml"
    file.write_text("[train]\nbatch = 4\n")
    said = refused(capsys, *train(tmp_path, folder, "--config", file))
    assert f"Set in {file}." in said
    assert "batch_size" in said


def test_updates_and_epochs_that_disagree(capsys, tmp_path, folder):
    file = tmp_path / "run.toml"
    file.write_text("[train]\nupdates = 5\nepochs = 3\n")
    said = refused(capsys, *train(tmp_path, folder, "--config", file))
    assert "disagree" in said
    assert "3 epochs of 1 batches are 3 updates" in said


def test_files_that_are_no_configuration(capsys, tmp_path, folder):
    assert "no configuration file" in refused(capsys, *train(tmp_path, folder, "--config", tmp_path / "no.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("[train\n")
    assert "not valid TOML" in refused(capsys, *train(tmp_path, folder, "--config", broken))


def test_folders(capsys, tmp_path, folder):
    assert "there is no folder" in refused(capsys, *train(tmp_path, tmp_path / "none"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no pictures" in refused(capsys, *train(tmp_path, empty))
    assert "no pictures are named" in refused(capsys, "train", "--family", "qwen", "--output", tmp_path / "runs")


def test_pictures(capsys, tmp_path, folder):
    (folder / "broken.png").write_bytes(b"not a picture")
    Image.new("RGB", (8, 200)).save(folder / "thin.png")
    said = refused(capsys, *train(tmp_path, folder))
    assert "2 pictures cannot be used" in said
    assert "broken.png (not a picture)" in said
    assert "thin.png (8x200 is smaller than one patch, 16 pixels)" in said


def test_no_captions(capsys, tmp_path, folder):
    for file in folder.glob("*.txt"):
        file.unlink()
    said = refused(capsys, *train(tmp_path, folder))
    assert "3 pictures of 3 without a caption" in said
    assert "--trigger" in said


@pytest.mark.parametrize(
    ("variant", "references", "says"),
    [
        ("edit-2509", ["0.png", "x.png"], "belong to no picture: x.png"),
        ("edit-2509", ["0_1.png", "0_2.png", "0_3.png", "0_4.png"], "0.png (4). Set in data.references. this variant"),
        ("edit", ["0.png", "1.png"], "1 picture without a reference beside others"),
        ("edit", ["0_1.png", "0_2.png", "1.png", "2.png"], "takes at most 1 reference picture"),
        ("image", ["0.png"], "this variant takes no reference pictures"),
    ],
)
def test_references(capsys, tmp_path, folder, variant, references, says):
    for name in references:
        (tmp_path / "seen").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "seen" / name)
    file = tmp_path / "run.toml"
    file.write_text(f'[[data]]\nfolder = "{folder}"\nreferences = "{tmp_path / "seen"}"\n')
    asked = ["--family", "qwen", "--preset", "toy", "--variant", variant, "--output", tmp_path / "runs"]
    assert says in refused(capsys, "train", *asked, "--config", file)
    assert not (tmp_path / "runs").exists()


def test_families_presets_and_plugins(capsys, tmp_path, folder):
    assert "there is no family 'quen'" in (said := refused(capsys, "plan", "--family", "quen"))
    assert "Did you mean 'qwen'?" in said
    assert "no model family is named" in refused(capsys, "plan")
    assert "there is no preset 'qwen/charcter'" in refused(capsys, "plan", "--family", "qwen", "--preset", "charcter")
    assert "no plugin 'qwan'" in refused(capsys, "--without", "qwan", "plugins")
    assert "no plugin file" in refused(capsys, "--plugin", tmp_path / "none.py", "plugins")


def test_a_plugin_file_that_fails(capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import nothing_of_that_name\n")
    said = refused(capsys, "--plugin", file, "plugins")
    assert "mine.py does not load" in said
    assert "nothing_of_that_name" in said
    file.write_text("from lorakit import hookimpl\n@hookimpl\ndef quantisation_rules(request): return []\n")
    said = refused(capsys, "--plugin", file, "plan", "--family", "qwen")
    assert "there is no hook 'quantisation_rules'" in said
    file.write_text(
        "from lorakit import hookimpl, only\n"
        "@hookimpl\ndef quantization_rules(request): return [only('quantisation.name', 'int8', because='x')]\n"
    )
    assert "'quantisation.name' in quantization_rules" in refused(capsys, "--plugin", file, "plan", "--family", "qwen")


def test_model_folders(capsys, tmp_path, folder):
    part = tmp_path / "model"
    (part / "transformer").mkdir(parents=True)
    said = refused(capsys, *train(tmp_path, folder, "--source", part))
    assert "lacks vae, text_encoder, tokenizer, scheduler" in said
    assert "there is no model folder" in refused(capsys, *train(tmp_path, folder, "--source", "./nowhere"))


def test_a_rule_is_quoted_with_its_reason(capsys, tmp_path, folder):
    said = refused(capsys, *train(tmp_path, folder, "--set", "text_encoder.train=true"))
    assert "family qwen says never true, because" in said
    assert "Set in --set text_encoder.train=true." in said


def test_output_that_cannot_be_written(capsys, tmp_path, folder):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    said = refused(
        capsys, "train", "--family", "qwen", "--preset", "toy", "--data", folder, "--output", blocked, "--name", "a"
    )
    assert "cannot be written" in said


def test_runs_that_are_none(capsys, tmp_path):
    assert "is not a run" in refused(capsys, "resume", tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    assert "not a plan" in refused(capsys, "resume", tmp_path)


def test_usage(capsys):
    assert run(["trian"]) == 2
    assert run(["plan", "--famly", "qwen"]) == 2
    assert run(["resume"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_failure_inside_is_called_a_bug_and_not_thrown_at_the_user(capsys, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("lorakit.kit.Kit.plan", fail)
    assert run(["plan", "--family", "qwen"]) == 1
    said = capsys.readouterr().err
    assert "This is a bug" in said
    assert "Traceback" not in said


def test_plan_with_errors_prints_the_plan_and_exits_2(capsys):
    assert run(["plan", "--family", "qwen", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["problems"][0]["severity"] == "error"
    assert not Path("runs").exists()

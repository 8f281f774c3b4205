"""`--judge`: what DINOv2 and CLIP say of previews, held against transformers itself, kept, and refused plainly."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from lorakit import Kit, evidence, history, judges
from lorakit.cli import run
from lorakit.engine import judging
from lorakit.judges import Answer
from tests.evidence import toys
from tests.evidence.stories import tell, validated
from tests.pictures import scene

LONG = "a dog " + "that runs and jumps over everything there is " * 3  # letters are tokens for the toy
PROMPTS = ("sks on a hill", LONG)


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory):
    return toys.dinov2(tmp_path_factory.mktemp("judges") / "dinov2-toy")


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return toys.clip(tmp_path_factory.mktemp("judges") / "clip-toy")


@pytest.fixture
def taught(tmp_path):
    """Twelve pictures, of which some are held out."""
    folder = tmp_path / "taught"
    folder.mkdir()
    for number in range(12):
        scene(100 + number, (64, 48)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text("a picture")
    return folder


@pytest.fixture
def folder(taught, tmp_path):
    """A run with two checkpoints, each with a preview that holds the trigger and one that does not."""
    drawn = {n: [(prompt, scene(n + place, (64, 64))) for place, prompt in enumerate(PROMPTS)] for n in (100, 200)}
    return tell(taught, tmp_path / "runs", [validated(100), validated(200, 0.29)], previews=drawn)


@pytest.fixture
def unloaded(monkeypatch):
    """Nobody may load a model any more."""

    def never(*_):
        raise AssertionError("a model was loaded")

    return lambda: monkeypatch.setattr(judging, "_loaded", never)


def answer(folder, *folders):
    found = history.read(folder)
    judged = Kit().likeness(folder, folders)
    previews = evidence.judged(found)
    return evidence.table(found, evidence.recommend(evidence.candidates(found, previews, judged)), previews, judged)


def embedded(folder, paths):
    """The pictures' embeddings by transformers' own automatic classes, one at a time."""
    from transformers import AutoImageProcessor, AutoModel

    model, processor = (
        AutoModel.from_pretrained(folder).eval(),
        AutoImageProcessor.from_pretrained(folder, backend="pil"),
    )
    for path in paths:
        inputs = processor(Image.open(path).convert("RGB"), return_tensors="pt")
        if hasattr(model, "visual_projection"):
            yield model.visual_projection(model.vision_model(**inputs).pooler_output)
        else:
            yield model(**inputs).last_hidden_state[:, 0]


def read(folder, prompt):
    """CLIP's projection of a prompt's first 77 tokens, by hand."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, truncation=True, max_length=77, return_tensors="pt")
    return model.text_projection(model.text_model(**ids).pooler_output)


# -- what is measured --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_image_similarity_is_the_mean_cosine_of_every_pair(folder, taught, request, kind):
    import torch

    judge = request.getfixturevalue(kind)
    found = history.read(folder)
    held_out = {Path(path).name for path in found.plan.held_out}
    assert 0 < len(held_out) < 12
    real = [path for path in sorted(taught.glob("*.png")) if path.name not in held_out]
    (said,) = answer(folder, judge)["judges"]
    assert said["training_pictures"] == len(real)
    with torch.no_grad():
        for one in found.previews:
            path = found.place(one.path)
            pairs = product(embedded(judge, [path]), list(embedded(judge, real)))
            right = torch.stack([torch.cosine_similarity(a, b) for a, b in pairs]).mean().item()
            (mine,) = [row for row in said["previews"] if row["file"] == f"samples/{path.name}"]
            if one.prompt == LONG:
                assert mine["image"] is None  # without the trigger it was not asked to look like them
            else:
                assert mine["image"] == pytest.approx(right, abs=1e-5)
    values = {row["image"] for row in said["previews"] if row["image"] is not None}
    assert len(values) == 2  # or the test could not fail


def test_text_similarity_is_that_of_the_first_77_tokens(folder, clip):
    import torch

    found = history.read(folder)
    (said,) = answer(folder, clip)["judges"]
    with torch.no_grad():
        for one in found.previews:
            path = found.place(one.path)
            (picture,) = embedded(clip, [path])
            right = torch.cosine_similarity(picture, read(clip, one.prompt)).item()
            (mine,) = [row for row in said["previews"] if row["file"] == f"samples/{path.name}"]
            assert mine["text"] == pytest.approx(right, abs=1e-5)
    assert len({row["text"] for row in said["previews"]}) == 4
    assert said["prompts_cut"] == [LONG]


def test_means_and_errors_are_of_a_checkpoints_previews(folder, clip):
    (said,) = answer(folder, clip)["judges"]
    texts = [row["text"] for row in said["previews"] if "000100" in row["file"]]
    (first, _) = said["updates"]
    assert first["update"] == 100
    assert first["text"]["previews"] == 2
    assert first["text"]["mean"] == pytest.approx(sum(texts) / 2)
    assert first["text"]["error"] == pytest.approx(abs(texts[0] - texts[1]) / 2)
    assert first["image"]["previews"] == 1
    assert first["image"]["error"] is None


def test_pictures_of_other_triggers_are_not_what_a_preview_should_be_like(folder, taught, tmp_path, clip):
    other = tmp_path / "other"
    shutil.copytree(taught, other)

    def compared(*data, trigger=""):
        asked = {"family": "qwen", "preset": "toy", "trigger": trigger, "output": str(tmp_path), "data": list(data)}
        found = dataclasses.replace(history.read(folder), plan=Kit().plan(asked))
        heard = []

        def ask(_, questions):
            heard.extend(questions)
            return [Answer() for _ in questions]

        (folder / "judged.json").unlink(missing_ok=True)
        (said,) = evidence.likeness(found, evidence.judged(found), judges.read([clip]), ask)
        assert said.called == any(one.get("trigger") for one in data)
        return {one.prompt: {path.parent.name for path in one.like} for one in heard}

    both = compared({"folder": str(taught), "trigger": "sks"}, {"folder": str(other), "trigger": ""})
    assert both == {PROMPTS[0]: {"taught"}, LONG: set()}
    dog = compared({"folder": str(taught), "trigger": "sks"}, {"folder": str(other), "trigger": "dog"})
    assert dog == {PROMPTS[0]: {"taught"}, LONG: {"other"}}
    none = compared({"folder": str(taught)}, {"folder": str(other)})
    assert none == {prompt: {"taught", "other"} for prompt in PROMPTS}


def test_the_order_is_the_same_whatever_judges_say(folder, dinov2, clip):
    ranked = [[one["update"] for one in answer(folder, *some)["ranked"]] for some in ((), (dinov2,), (clip, dinov2))]
    assert ranked[0] == ranked[1] == ranked[2]


# -- where it is shown -------------------------------------------------------------------------------------------


def test_pick_tells_it_in_reasons_and_in_a_table(folder, dinov2, clip, capsys):
    assert run(["pick", str(folder), "--judge", str(dinov2), "--judge", str(clip)]) == 0
    said, noise = capsys.readouterr()
    assert noise == ""
    reasons, _, table = said.partition("judge        DINOv2 (dinov2-toy): ")
    assert "DINOv2 (dinov2-toy): image similarity" in reasons
    assert "CLIP (clip-toy): image similarity" in reasons
    assert "(1 preview), text similarity" in reasons
    assert "of 1 prompt only the first 77 tokens are read" in table
    assert table.count("update 100: image similarity") == 2
    assert table.count("It is told and decides nothing.") == 2
    assert json.loads((folder / "recommended.json").read_text())["judges"][1]["name"] == "clip-toy"
    assert run(["pick", str(folder)]) == 0
    assert "similarity" not in capsys.readouterr().out.replace("trigger sensitivity", "")


def test_the_report_draws_it(folder, dinov2, clip, tmp_path):
    page = tmp_path / "page.html"
    assert run(["report", str(folder), "-o", str(page), "--judge", str(clip), "--judge", str(dinov2)]) == 0
    text = page.read_text()
    numbers = text.partition('id="numbers-image-similarity">')[2].partition("</script>")[0]
    drawn = json.loads(numbers)
    assert drawn["at"] == [100, 200]
    assert [line["name"] for line in drawn["lines"]] == ["CLIP (clip-toy)", "DINOv2 (dinov2-toy)"]
    (said, _) = answer(folder, clip, dinov2)["judges"]
    assert drawn["lines"][0]["values"] == pytest.approx([row["image"]["mean"] for row in said["updates"]])
    texts = json.loads(text.partition('id="numbers-text-similarity">')[2].partition("</script>")[0])
    assert [line["name"] for line in texts["lines"]] == ["CLIP (clip-toy)"]
    assert "What judges say of the previews" in text
    assert run(["report", str(folder), "-o", str(page)]) == 0
    assert "similarity" not in page.read_text()


# -- what is kept ------------------------------------------------------------------------------------------------


def test_a_second_call_loads_no_model(folder, dinov2, clip, unloaded, capsys, tmp_path):
    wanted = ["pick", str(folder), "--json", "--judge", str(dinov2), "--judge", str(clip)]
    assert run(wanted) == 0
    first = capsys.readouterr().out
    unloaded()
    assert run(wanted) == 0
    assert capsys.readouterr().out == first
    assert run(["report", str(folder), "--judge", str(clip)]) == 0
    moved = shutil.copytree(clip, tmp_path / "elsewhere" / "clip-toy")  # content counts, not the place
    assert run(["pick", str(folder), "--judge", str(moved)]) == 0


def test_a_second_call_imports_no_torch(folder, dinov2):
    assert run(["pick", str(folder), "--judge", str(dinov2)]) == 0
    ask = "import sys; from lorakit.cli import run; sys.exit(run(sys.argv[1:]) or 3 * ('torch' in sys.modules))"
    wanted = [sys.executable, "-c", ask, "pick", str(folder), "--judge", str(dinov2)]
    done = subprocess.run(wanted, capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["preview", "training picture", "prompt", "judge"])
def test_what_changed_is_asked_again(folder, taught, clip, tmp_path, monkeypatch, what):
    judge = shutil.copytree(clip, tmp_path / "judge")
    heard = []
    asked = judging.answers
    monkeypatch.setattr(judging, "answers", lambda judge, questions: heard.append(questions) or asked(judge, questions))
    Kit().likeness(folder, [judge])
    Kit().likeness(folder, [judge])
    assert [len(one) for one in heard] == [4]
    if what == "preview":
        scene(999, (64, 64)).save(folder / "samples" / "000100-0.png")
    elif what == "training picture":
        held_out = {Path(path).name for path in history.read(folder).plan.held_out}
        scene(999, (64, 64)).save(next(path for path in taught.glob("*.png") if path.name not in held_out))
    elif what == "prompt":
        events = folder / "events.jsonl"
        events.write_text(events.read_text().replace(LONG, "another"))
    else:
        (judge / "tokenizer_config.json").write_text('{"model_max_length": 77, "new": 1}')
    Kit().likeness(folder, [judge])
    assert [len(one) for one in heard] == [4, {"preview": 1, "training picture": 2, "prompt": 2, "judge": 4}[what]]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 99999, '{"version": 1, "judges": 3}', '{"version": 9}', "\0", "answers"]
)
def test_a_broken_file_of_answers_is_made_anew(folder, dinov2, text):
    right = answer(folder, dinov2)
    kept = folder / "judged.json"
    digest = judges.read([dinov2])[0].digest
    if text == "answers":
        rows = json.loads(kept.read_text())["judges"][digest]["answers"]
        wrong = [[float("nan"), None, 0], [7.0, None, 0], "x", [None, None], [0.5, None, "1"]]
        told = {key: wrong[place % 5] for place, key in enumerate(rows)}
        text = json.dumps({"version": 1, "judges": {digest: {"answers": told}}})
    kept.write_text(text)
    assert answer(folder, dinov2) == right
    assert json.loads(kept.read_text())["judges"][digest]["kind"] == "dinov2"


def test_a_folder_that_cannot_be_written_costs_time_and_no_answer(folder, dinov2):
    (folder / "judged.json").mkdir()
    assert answer(folder, dinov2)["judges"][0]["updates"][0]["image"]


# -- runs that leave little to judge -----------------------------------------------------------------------------


def test_training_pictures_that_are_gone_leave_the_text(folder, taught, clip, capsys):
    shutil.rmtree(taught)
    assert run(["pick", str(folder), "--judge", str(clip)]) == 0
    said = capsys.readouterr().out
    assert "no preview is held against training pictures: there is no folder" in said
    assert "text similarity" in said
    assert "image similarity" not in said


def test_a_training_picture_that_is_broken_is_left_out(folder, taught, dinov2):
    for path in taught.glob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    (said,) = answer(folder, dinov2)["judges"]
    assert all(row["image"] is None for row in said["previews"])


def test_a_run_without_previews(taught, tmp_path, dinov2, unloaded, capsys):
    unloaded()
    folder = tell(taught, tmp_path / "bare", [validated(100), validated(200)])
    assert run(["pick", str(folder), "--judge", str(dinov2)]) == 0
    assert "no preview is held against training pictures: there is no preview" in capsys.readouterr().out


def test_where_no_preview_can_be_asked_about_nothing_is_loaded(taught, tmp_path, dinov2, unloaded, capsys):
    unloaded()
    drawn = {100: [("a dog", scene(1))]}
    folder = tell(taught, tmp_path / "other", [validated(100), validated(200)], previews=drawn)
    assert run(["pick", str(folder), "--judge", str(dinov2)]) == 0
    said = capsys.readouterr().out
    assert "no prompt of a preview holds the trigger word" in said
    assert "update 100: nothing" in said


def test_two_judges_of_one_name_are_told_apart_and_one_twice_is_one(dinov2, tmp_path):
    other = toys.dinov2(tmp_path / "x" / "dinov2-toy", seed=1)
    found = judges.read([dinov2, other, dinov2])
    assert len(found) == 2
    assert found[0].name != found[1].name
    assert [one.folder for one in found] == [dinov2, other]


# -- folders that are no judge -----------------------------------------------------------------------------------


def refused(capsys, folder, judge):
    """What is said to `pick` and `report` alike; nothing is written."""
    before = sorted(folder.rglob("*"))
    for command in ("pick", "report"):
        assert run([command, str(folder), "--judge", str(judge)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert len(said.err.splitlines()) == 1
        assert "--judge" in said.err
    assert sorted(folder.rglob("*")) == before
    return said.err


def spoiled(kind, spoil, says):
    return pytest.param(kind, spoil, says, id=says[:30])


def _pickled(judge):
    (judge / "model.safetensors").unlink()
    (judge / "pytorch_model.bin").write_bytes(b"\x80\x04")


def _setting(name, **changed):
    def change(judge):
        file = judge / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))

    return change


def _without_a_tensor(judge):
    import safetensors.torch

    file = judge / "model.safetensors"
    held = safetensors.torch.load_file(file)
    held.pop("layernorm.weight")
    safetensors.torch.save_file(held, file, {"format": "pt"})


def _nan(judge):
    import safetensors.torch

    file = judge / "model.safetensors"
    held = safetensors.torch.load_file(file)
    held["layernorm.weight"].fill_(float("nan"))
    safetensors.torch.save_file(held, file, {"format": "pt"})


def _no_tokenizer(judge):
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (judge / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("kind", "spoil", "says"),
    [
        spoiled("dinov2", shutil.rmtree, "there is no folder"),
        spoiled("dinov2", lambda judge: (judge / "config.json").unlink(), "has no config.json"),
        spoiled("dinov2", lambda judge: (judge / "config.json").write_text("{"), "config.json cannot be read"),
        spoiled("dinov2", lambda judge: (judge / "config.json").write_text("[" * 99999), "nested too deeply"),
        spoiled("dinov2", _setting("config.json", model_type="vit"), "neither a DINOv2 nor a CLIP model"),
        spoiled("dinov2", _setting("config.json", model_type=["clip"]), "neither a DINOv2"),
        spoiled(
            "clip", _setting("config.json", model_type="clip_text_model"), "names the model type 'clip_text_model'"
        ),
        spoiled("dinov2", _pickled, "only pytorch_model.bin: pickled weights"),
        spoiled("dinov2", lambda judge: (judge / "model.safetensors").unlink(), "has no safetensors file"),
        spoiled("dinov2", lambda judge: (judge / "preprocessor_config.json").unlink(), "has no preprocessor_config"),
        spoiled("clip", _no_tokenizer, "has no tokenizer"),
        spoiled("dinov2", lambda judge: (judge / "model.safetensors").write_bytes(b"\xff" * 99), "cannot be loaded"),
        spoiled("dinov2", _without_a_tensor, "lacks layernorm.weight"),
        spoiled("dinov2", _setting("config.json", hidden_size=64), "cannot be used"),
        spoiled("dinov2", _setting("config.json", hidden_size="many"), "cannot be used."),
        spoiled("dinov2", _nan, "not finite numbers"),
        spoiled("dinov2", _setting("preprocessor_config.json", size={"shortest_edge": 10**6}), "1000000 pixels a side"),
        spoiled("clip", _setting("preprocessor_config.json", crop_size={"height": 64, "width": 64}), "cannot be used"),
        spoiled("clip", lambda judge: (judge / "tokenizer.json").write_text("{}"), "cannot be used"),
    ],
)
def test_folders_that_cannot_judge(folder, tmp_path, request, capsys, kind, spoil, says):
    judge = shutil.copytree(request.getfixturevalue(kind), tmp_path / "judge")
    spoil(judge)
    assert says in refused(capsys, folder, judge)


def test_a_file_is_no_folder(folder, dinov2, capsys):
    assert "is a file, not a folder" in refused(capsys, folder, dinov2 / "config.json")


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-by-this-name/x"])
def test_names_that_no_file_system_takes(folder, capsys, name):
    assert "cannot be read" in refused(capsys, folder, name)


def test_code_of_the_folder_is_not_run(folder, dinov2, tmp_path):
    judge = shutil.copytree(dinov2, tmp_path / "judge")
    (judge / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    _setting("config.json", auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})(judge)
    _setting("preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"})(judge)
    assert answer(folder, judge)["judges"][0]["updates"][0]["image"]
    assert not (tmp_path / "ran").exists()


def test_nothing_is_asked_of_the_network(folder, clip, monkeypatch):
    import socket

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("somebody looked up a host"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("somebody connected"))
    assert answer(folder, clip)["judges"][0]["updates"][0]["text"]

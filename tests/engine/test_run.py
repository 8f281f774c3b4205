"""A whole run on the toy: what it leaves, what it says, and how it stops and goes on."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from lorakit.control import Control
from lorakit.engine import checkpoint
from lorakit.engine.loop import Trainer
from lorakit.engine.run_folder import events_of, read_plan
from lorakit.errors import DataError, ModelError, RunError, TrainingError
from lorakit.events import (
    CheckpointRemoved,
    CheckpointSaved,
    PhaseFinished,
    PhaseStarted,
    PreviewDrawn,
    RunFinished,
    RunStarted,
    RunStopped,
    SheetDrawn,
    UpdateFinished,
    Warned,
)

SIX = {"train": {"updates": 6, "accumulation": 2, "caption_dropout": 0.2}, "lora": {"dropout": 0.0}}


def weights(plan) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(plan.folder / f"{plan.settings.name}.safetensors")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_from_pictures_to_proof(kit, make_plan, of_kind):
    plan = make_plan(
        model={"source": "toy"},
        train={"updates": 4, "caption_dropout": 0.1},
        sampling={"prompts": ["a red circle"], "every": 2, "strengths": [0, 1]},
        save={"every": 1, "keep": 2},
        lora={"targets": ["attn.to_q"]},
    )
    events = list(kit.train(plan))
    folder = plan.folder

    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "plan.json",
        "events.jsonl",
        "run.safetensors",
        "run.workflow.api.json",
        "report.html",
        "samples/000002-0.png",
        "samples/000004-0.png",
        "samples/strengths.png",
        *(
            f"checkpoints/update-00000{n}/{name}"
            for n in (3, 4)
            for name in (f"run-00000{n}.safetensors", "state.json", "state.safetensors")
        ),
    }
    phases = [event.phase for event in of_kind(events, PhaseStarted)]
    assert phases == ["index", "cache text", "cache images", "load", "train", "save"]
    assert [event.phase for event in of_kind(events, PhaseFinished)] == phases
    assert [event.update for event in of_kind(events, UpdateFinished)] == [1, 2, 3, 4]
    assert [event.update for event in of_kind(events, CheckpointSaved)] == [1, 2, 3, 4]
    assert [event.update for event in of_kind(events, CheckpointRemoved)] == [1, 2]
    assert [event.update for event in of_kind(events, PreviewDrawn)] == [2, 4]
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-2], SheetDrawn)
    last = events[-1]
    assert isinstance(last, RunFinished)
    count = len(weights(plan)) // 2
    assert last.proof == f"diffusers {count}/{count} modules, scale 1.000 | ComfyUI keys {count}/{count}"
    assert all(event.loss > 0 and event.grad_norm > 0 for event in of_kind(events, UpdateFinished))
    assert of_kind(events, UpdateFinished)[-1].passes == 4

    assert list(events_of(folder)) == events  # every event is a line of events.jsonl, and comes back equal
    newest = checkpoint.folder_of(folder, 4) / "run-000004.safetensors"
    assert same(safetensors.torch.load_file(newest), weights(plan))


def test_a_run_of_the_same_name_is_not_touched(kit, make_plan):
    plan = make_plan(train={"updates": 1}, sampling={"prompts": []})
    list(kit.train(plan))
    before = {path: path.read_bytes() for path in plan.folder.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"there is a run in .*lorakit resume.*another --name"):
        list(kit.train(plan))
    assert {path: path.read_bytes() for path in plan.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("every", [0, 1])
def test_a_complete_run_is_not_trained_again(kit, make_plan, every):
    plan = make_plan(train={"updates": 1}, sampling={"prompts": []}, save={"every": every})
    list(kit.train(plan))
    with pytest.raises(RunError, match="is complete"):
        list(kit.resume(plan.folder))


# -- stopping and going on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_a_stopped_run_goes_on_to_the_same_file(kit, make_plan, of_kind, optimizer):
    options = {**SIX, "optimizer": {"name": optimizer}, "sampling": {"prompts": []}}
    straight, stopped = make_plan(name="straight", **options), make_plan(name="stopped", **options)
    list(kit.train(straight))

    control, events = Control(), []
    for event in kit.train(stopped, control):
        events.append(event)
        if isinstance(event, UpdateFinished) and event.update == 3:
            control.stop("enough for today")
    assert isinstance(events[-1], RunStopped)
    assert (events[-1].update, events[-1].reason) == (3, "enough for today")
    assert checkpoint.saved(stopped.folder) == [3]
    assert not (stopped.folder / "stopped.safetensors").exists()

    more = list(kit.resume(stopped.folder))
    assert more[0].resumed_from == 3
    assert [event.update for event in of_kind(more, UpdateFinished)] == [4, 5, 6]
    assert isinstance(more[-1], RunFinished)
    assert same(weights(stopped), weights(straight))


def test_whoever_stops_reading_leaves_a_checkpoint(kit, make_plan):
    plan = make_plan(**SIX, sampling={"prompts": []})
    events = kit.train(plan)
    for event in events:
        if isinstance(event, UpdateFinished) and event.update == 2:
            break
    events.close()
    assert checkpoint.saved(plan.folder) == [2]
    assert list(events_of(plan.folder))[-1].update == 2
    assert isinstance(list(kit.resume(plan.folder))[-1], RunFinished)


def test_an_interrupt_in_the_middle_of_an_update_leaves_no_torn_one(kit, make_plan, monkeypatch):
    plan = make_plan(**SIX, sampling={"prompts": []})
    inner, calls = Trainer.loss, []

    def loss(self, *arguments):
        calls.append(1)
        if len(calls) == 4:  # the second pass of the second update
            raise KeyboardInterrupt
        return inner(self, *arguments)

    monkeypatch.setattr(Trainer, "loss", loss)
    with pytest.raises(KeyboardInterrupt):
        list(kit.train(plan))
    assert set(checkpoint.saved(plan.folder)) <= {1}
    monkeypatch.undo()
    assert isinstance(list(kit.resume(plan.folder))[-1], RunFinished)


def test_a_stop_before_training_can_be_resumed_from_the_start(kit, make_plan, of_kind):
    plan, control = make_plan(train={"updates": 1}, sampling={"prompts": []}), Control()
    control.stop("at once")
    events = list(kit.train(plan, control))
    assert isinstance(events[-1], RunStopped)
    assert not of_kind(events, UpdateFinished)
    assert isinstance(list(kit.resume(plan.folder))[-1], RunFinished)


def test_missing_pictures_stop_a_resume(kit, make_plan, pictures):
    plan, control = make_plan(**SIX, sampling={"prompts": []}), Control()
    for event in kit.train(plan, control):
        if isinstance(event, UpdateFinished):
            control.stop()
    (pictures / "3.png").unlink()
    with pytest.raises(RunError, match=r"3 pictures and 3 passes an epoch now, 4 and 4 then.*Put them back"):
        list(kit.resume(plan.folder))


def test_a_folder_that_is_no_run_is_refused(kit, tmp_path):
    with pytest.raises(RunError, match=r"is not a run"):
        list(kit.resume(tmp_path))


# -- what must not matter ----------------------------------------------------------------------------------------


def test_previews_do_not_change_what_is_learned(kit, make_plan):
    drawn = {"prompts": ["a red circle"], "every": 2, "guidance": 2, "strengths": [0, 1]}
    options = {**SIX, "lora": {"dropout": 0.3}}
    torch.manual_seed(0)
    without = make_plan(name="without", sampling={"prompts": []}, **options)
    list(kit.train(without))
    torch.manual_seed(0)
    with_previews = make_plan(name="with", sampling=drawn, **options)
    list(kit.train(with_previews))
    assert same(weights(with_previews), weights(without))


# -- other ways to train -----------------------------------------------------------------------------------------


def test_bf16_int8_and_gradient_checkpointing_together(kit, make_plan, of_kind):
    plan = make_plan(
        train={"updates": 2, "precision": "bf16", "gradient_checkpointing": True, "batch_size": 2},
        quantization={"name": "int8"},
        optimizer={"name": "adamw8bit"},
        sampling={"prompts": ["a red circle"], "every": 2},
        save={"dtype": "bf16"},
    )
    events = list(kit.train(plan))
    assert "quantize" in [event.phase for event in of_kind(events, PhaseStarted)]
    assert {tensor.dtype for tensor in weights(plan).values()} == {torch.bfloat16}
    assert any(tensor.any() for name, tensor in weights(plan).items() if "lora_B" in name)
    assert isinstance(events[-1], RunFinished)


def test_with_a_running_average_the_file_holds_it(kit, make_plan, of_kind):
    plan = make_plan(train={"updates": 3, "ema": 0.9}, sampling={"prompts": []})
    events = list(kit.train(plan))
    assert "-raw.safetensors" in of_kind(events, Warned)[0].message
    raw = safetensors.torch.load_file(plan.folder / "run-raw.safetensors")
    assert not same(weights(plan), raw)


def test_the_edit_model_trains_without_references(kit, make_plan):
    plan = make_plan(variant="edit-2509", train={"updates": 1}, sampling={"prompts": []})
    assert isinstance(list(kit.train(plan))[-1], RunFinished)


def test_weights_come_from_the_hub(kit, make_plan, toy, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(toy))
    plan = make_plan(model={"source": "someone/qwen"}, train={"updates": 1}, sampling={"prompts": []})
    assert isinstance(list(kit.train(plan))[-1], RunFinished)


# -- what can go wrong -------------------------------------------------------------------------------------------


def test_a_failed_download_is_one_paragraph(kit, make_plan, monkeypatch):
    def fetch(name, **options):
        raise OSError("the cable is out")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(ModelError, match="the cable is out") as caught:
        list(kit.train(make_plan(model={"source": "someone/qwen"})))
    assert "\n" not in str(caught.value)


def test_an_unwritable_output_is_refused_before_anything_else(kit, make_plan, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(RunError, match=r"cannot be written.*output"):
        list(kit.train(make_plan(output=str(tmp_path / "file"))))


def test_a_picture_that_cannot_be_decoded_stops_before_training(kit, make_plan, pictures):
    from PIL import Image

    Image.effect_noise((64, 64), 50).convert("RGB").save(pictures / "3.jpg")
    whole = (pictures / "3.jpg").read_bytes()
    (pictures / "3.jpg").write_bytes(whole[: len(whole) // 2])  # its header says all that the plan asks
    plan = make_plan()
    with pytest.raises(DataError, match=r"3\.jpg cannot be decoded"):
        list(kit.train(plan))
    assert not list(plan.folder.glob("*.safetensors"))


def test_a_loss_that_is_no_number_names_the_picture_and_the_run_can_go_on(kit, make_plan, monkeypatch):
    plan = make_plan(**SIX, sampling={"prompts": []}, save={"every": 1})
    inner = Trainer.loss

    def loss(self, *arguments):
        return inner(self, *arguments) * (float("nan") if self.updates == 2 else 1)

    monkeypatch.setattr(Trainer, "loss", loss)
    with pytest.raises(TrainingError, match=r"update 3 is not a finite number.*pictures/\d\.png"):
        list(kit.train(plan))
    assert checkpoint.saved(plan.folder) == [1, 2]
    monkeypatch.undo()
    assert isinstance(list(kit.resume(plan.folder))[-1], RunFinished)


def test_the_plan_is_kept_as_it_was(kit, make_plan):
    plan = make_plan(train={"updates": 1}, sampling={"prompts": []})
    list(kit.train(plan))
    assert read_plan(plan.folder) == plan
    assert json.loads((plan.folder / "plan.json").read_text())["settings"]["name"] == "run"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_memory_that_runs_out_is_told_with_what_to_change_and_the_run_is_saved(kit, make_plan, monkeypatch, error):
    plan = make_plan(**SIX, save={"every": 0})
    update = Trainer.start

    def fail_at_third(self, *given):
        if self.updates == 2:
            raise error
        return update(self, *given)

    monkeypatch.setattr(Trainer, "start", fail_at_third)
    with pytest.raises(TrainingError) as caught:
        list(kit.train(plan))
    said = str(caught.value)
    assert "does not suffice, after update 2" in said
    assert "Change, in this order: " in said
    assert said.index("quantization.name = 'int8'") < said.index("train.accumulation does not help")
    assert checkpoint.saved(plan.folder) == [2]
    monkeypatch.undo()
    assert list(kit.resume(plan.folder))[-1].update == 6


def test_the_report_is_there_after_the_first_checkpoint_and_again_at_the_end(kit, make_plan, of_kind):
    plan = make_plan(train={"updates": 3}, save={"every": 1}, sampling={"prompts": []}, validation={"every": 1})
    page, seen = plan.folder / "report.html", []
    for event in kit.train(plan):
        if isinstance(event, UpdateFinished | RunFinished):
            seen.append((type(event).__name__, page.read_text() if page.is_file() else ""))
    pages = [text for _, text in seen]
    assert not pages[0]
    assert "Under way" in pages[1]
    assert "Recommended: update 1" in pages[1]
    assert "Finished on" in pages[-1]
    assert len(set(pages)) == len(pages)


def test_no_report_where_none_is_wanted(kit, make_plan):
    plan = make_plan(train={"updates": 1}, save={"every": 1, "report": False}, sampling={"prompts": []})
    list(kit.train(plan))
    assert not (plan.folder / "report.html").exists()

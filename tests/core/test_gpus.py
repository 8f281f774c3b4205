"""How a plan comes by its number of GPUs, and what that means for it."""

import pytest

from lorakit import changes, cli, launched
from lorakit.config import Layer
from lorakit.engine.run_folder import read_plan
from lorakit.errors import ConfigError, RunError
from lorakit.explain import arithmetic


@pytest.fixture
def started(monkeypatch):
    """As torchrun starts a process of several."""

    def start(count, number=0, restarts=0):
        said = {"WORLD_SIZE": count, "RANK": number, "LOCAL_RANK": number, "TORCHELASTIC_RESTART_COUNT": restarts}
        for name, value in {**said, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}.items():
            monkeypatch.setenv(name, str(value))

    return start


def test_one_gpu_where_nobody_says(kit, asked):
    plan = kit.plan(asked)
    assert (plan.settings.train.gpus, plan.settings.train.timeout) == (1, None)
    assert plan.choices["train.gpus"].because == "one GPU, where nobody asks for more"


def test_as_many_as_torchrun_started(kit, asked, started):
    started(3)
    plan = kit.plan(asked)
    choice = plan.choices["train.gpus"]
    assert (choice.value, choice.decided_by) == (3, "torchrun")
    assert plan.settings.train.timeout == 1800


def test_another_number_than_torchrun_started_is_refused(kit, asked, started):
    started(2)
    with pytest.raises(ConfigError, match=r"train\.gpus = 4, and 2 processes were started"):
        kit.plan({**asked, "train": {"gpus": 4}})


def test_a_number_that_is_none_is_refused(started, monkeypatch):
    started(2)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE = 'two'"):
        launched.count()


def test_the_arithmetic_is_that_of_all_gpus_together(kit, asked):
    """Three pictures of one shape and one of another: a batch of two each on two GPUs takes two batches."""
    train = {"gpus": 2, "batch_size": 2, "accumulation": 3, "epochs": 6}
    plan = kit.plan({**asked, "train": train, "validation": {"pictures": 0}})
    one = kit.plan({**asked, "train": {**train, "gpus": 1, "batch_size": 4}, "validation": {"pictures": 0}})
    assert plan.arithmetic == one.arithmetic
    assert (plan.arithmetic.batches_per_epoch, plan.arithmetic.effective_batch, plan.arithmetic.updates) == (2, 12, 4)
    assert "an update    batches of 2 on each of 2 GPUs x 3 accumulated = 12 passes" in arithmetic(plan)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": {"timeout": 60}}, "train.timeout would have no effect"),
        ({"train": {"gpus": 2}, "model": {"device": "mps"}}, "several GPUs need cuda"),
        ({"train": {"gpus": 0}}, "train.gpus"),
    ],
)
def test_what_cannot_be_is_refused(kit, asked, settings, said):
    with pytest.raises(ConfigError, match=said):
        kit.plan({**asked, **settings})


def test_a_recovery_adapter_is_made_on_one(kit, asked, tmp_path):
    plan = kit.plan({**asked, "train": {"gpus": 2}})
    with pytest.raises(ConfigError, match="made on one GPU"):
        list(kit.recover(plan, tmp_path / "file.safetensors"))


def test_a_plan_for_several_is_not_carried_out_by_one(kit, asked):
    plan = kit.plan({**asked, "train": {"gpus": 2}})
    with pytest.raises(RunError, match="the plan is for 2 GPUs, and 1 processes were started"):
        list(kit.train(plan))
    assert not plan.folder.exists()


# -- another number ------------------------------------------------------------------------------------------------


def begun(kit, asked, **train):
    plan = kit.plan({**asked, "train": train})
    plan.folder.mkdir(parents=True)
    (plan.folder / "plan.json").write_text(plan.to_json())
    return plan


def test_the_same_pictures_come_together_on_another_number(kit, asked):
    plan = begun(kit, asked, gpus=2, batch_size=2)
    for gpus, batch in ((4, 1), (1, 4)):
        made, told = kit.resumed(plan.folder, [Layer({"train": {"gpus": gpus}}, "--gpus")])
        assert (made.settings.train.gpus, made.settings.train.batch_size) == (gpus, batch)
        assert made.arithmetic == plan.arithmetic
        assert f"train.gpus = {gpus}, was 2" in told
        assert changes.fixed(made) == changes.fixed(plan)
    assert kit.resumed(plan.folder) == (read_plan(plan.folder), ())


def test_torchrun_may_start_another_number(kit, asked, started):
    plan = begun(kit, asked, gpus=2, batch_size=2)
    started(4)
    made, _ = kit.resumed(plan.folder)
    assert (made.settings.train.gpus, made.settings.train.batch_size) == (4, 1)


def test_other_pictures_together_are_refused(kit, asked):
    plan = begun(kit, asked, gpus=2, batch_size=2)
    with pytest.raises(ConfigError, match="cannot be shared evenly among 3"):
        kit.resumed(plan.folder, [Layer({"train": {"gpus": 3}}, "--gpus")])
    with pytest.raises(RunError, match=r"train\.gpus x train\.batch_size = 3, and 4 then"):
        kit.resumed(plan.folder, [Layer({"train": {"gpus": 3, "batch_size": 1}}, "--set")])


def test_a_run_of_before_there_were_several_goes_on(kit, asked):
    plan = begun(kit, asked, batch_size=2)
    then = {name: value for name, value in changes.fixed(plan).items() if not name.startswith("train.gpus")}
    changes.refuse_changed(plan, {**then, "train.batch_size": 2})
    with pytest.raises(RunError, match=r"train\.gpus x train\.batch_size = 2, and 3 then"):
        changes.refuse_changed(plan, {**then, "train.batch_size": 3})


# -- how it is started ---------------------------------------------------------------------------------------------


def test_train_calls_torchrun_for_several(kit, asked, pictures, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("lorakit.cli.runs.launch", lambda count: calls.append(count) or 7)
    words = ["train", "--family", "qwen", "--data", str(pictures), "--trigger", "sks", "--output", str(tmp_path)]
    assert cli.run([*words, "--gpus", "3"]) == 7
    assert calls == [3]

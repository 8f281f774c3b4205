"""The plan: everything decided, with who decided it."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from lorakit import Kit, Layer, hookimpl, only
from lorakit.changes import asked_again
from lorakit.config import leaves
from lorakit.errors import ConfigError, ModelError, RuleError, RunError
from lorakit.plan import Plan, agree
from tests.core.fake import make_kit, part, speaker
from tests.pictures import picture


@pytest.fixture
def plan(kit, asked):
    return kit.plan(asked)


# -- provenance --------------------------------------------------------------------------------------------------


def test_every_setting_has_a_choice_of_the_same_value_with_somebody_and_a_reason(plan):
    settings = dict(leaves(plan.settings.model_dump()))
    assert set(plan.choices) == set(settings)
    for path, choice in plan.choices.items():
        assert choice.value == settings[path], path
        assert choice.decided_by, path
        assert choice.because, path


def test_nothing_that_training_needs_is_left_undecided(plan):
    settings = plan.settings
    decided = [settings.variant, settings.name, settings.model.source, settings.lora.alpha, settings.lora.targets]
    decided += [settings.train.updates, settings.train.epochs, settings.train.resolution, settings.scheduler.timesteps]
    decided += [settings.sampling.prompts, settings.sampling.width, settings.data[0].resolution]
    assert None not in decided


def test_choices_stand_in_the_order_of_the_settings(plan):
    sections = list(dict.fromkeys(path.split(".")[0] for path in plan.choices))
    # no plugin here has settings, so nothing is chosen for any
    assert sections == [name for name in type(plan.settings).model_fields if name != "plugin"]


def test_each_party_is_named(kit, asked):
    request = kit.request(
        Layer({**asked, "lora": {"rank": 8}}, "run.toml"),
        Layer({"train": {"batch_size": 2}}, "--set train.batch_size=2"),
    )
    choices = kit.plan(request).choices
    assert choices["lora.rank"].decided_by == "run.toml"
    assert choices["train.batch_size"].decided_by == "--set train.batch_size=2"
    assert choices["lora.targets"].decided_by == "family fake"
    assert choices["lora.dropout"].because == "default"


# -- what is filled in -------------------------------------------------------------------------------------------


def test_defaults_of_family_and_variant(plan):
    settings = plan.settings
    assert (settings.variant, settings.model.source, settings.train.resolution) == ("small", "nobody/fake", 64)
    assert settings.lora.targets == ("attn.to_q", "attn.to_k")
    assert settings.lora.alpha == settings.lora.rank == 16
    assert (settings.sampling.width, settings.sampling.height) == (64, 64)
    assert settings.sampling.prompts == ("sks, a cat, number 0", "sks, a cat, number 1")
    assert settings.data[0].resolution == 64


def test_a_folders_trigger_is_the_runs_unless_it_has_its_own(kit, asked):
    [folder] = asked["data"]
    given = {**asked, "trigger": "sks"}
    assert kit.plan(given).settings.data[0].trigger == "sks"
    assert kit.plan({**given, "data": [{**folder, "trigger": ""}]}).settings.data[0].trigger == ""


def test_another_variant_brings_its_own(kit, asked):
    settings = kit.plan({**asked, "variant": "large"}).settings
    assert (settings.model.source, settings.train.resolution) == ("nobody/fake-large", 128)


def test_an_unknown_variant(kit, asked):
    with pytest.raises(ConfigError, match=r"no variant 'huge'.*the call.*small, large"):
        kit.plan({**asked, "variant": "huge"})


@pytest.mark.parametrize(
    ("trigger", "name"), [("maya_char", "maya_char"), ("Zoë Müller!", "Zo-M-ller"), ("", "fake-small"), ("...", "fake")]
)
def test_the_run_is_named_after_the_trigger(kit, asked, trigger, name):
    assert kit.plan({**asked, "trigger": trigger}).settings.name == name


def test_the_run_folder(kit, asked):
    plan = kit.plan({**asked, "output": "somewhere", "name": "mine"})
    assert plan.folder == Path("somewhere/mine")


def test_a_scheduler_setting_without_effect_is_refused_after_all_is_decided_too(kit, asked):
    with pytest.raises(ConfigError, match=r"mean and std have no effect.*the call"):
        kit.plan({**asked, "scheduler": {"mean": 1.0}})


def test_timesteps_are_those_of_the_chosen_scheduler(kit, asked):
    assert kit.plan({**asked, "scheduler": {"name": "ddpm"}}).settings.scheduler.timesteps == "uniform"
    with pytest.raises(ConfigError, match=r"scheduler\.timesteps = 'sigmoid'.*'uniform'"):
        kit.plan({**asked, "scheduler": {"name": "ddpm", "timesteps": "sigmoid"}})


def test_a_text_encoder_that_cannot_be_trained_is_refused(kit, asked):
    with pytest.raises(RuleError, match=r"text_encoder\.train = true is refused.*the text encoder of .* cannot be"):
        kit.plan({**asked, "text_encoder": {"train": True}})


def test_a_model_folder_must_exist_and_hold_every_part(kit, asked, tmp_path):
    with pytest.raises(ModelError, match=r"no model folder or file \./nothing.*the call"):
        kit.plan({**asked, "model": {"source": "./nothing"}})
    (tmp_path / "model" / "vae").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"lacks transformer.*the call"):
        kit.plan({**asked, "model": {"source": str(tmp_path / "model")}})
    (tmp_path / "model" / "transformer").mkdir()
    assert kit.plan({**asked, "model": {"source": str(tmp_path / "model")}}).errors == ()


def test_what_a_part_needs_must_be_installed(asked):
    class Shop:
        @hookimpl
        def register(self, registry):
            registry.optimizer(part("lion", requires=("a_package_nobody_has",)))

    [problem] = make_kit(shop=Shop()).plan({**asked, "optimizer": {"name": "lion"}}).errors
    assert "pip install a_package_nobody_has" in problem.message


# -- frozen, JSON, comparable ------------------------------------------------------------------------------------


def test_a_plan_is_frozen(plan):
    for thing, name in ((plan, "settings"), (plan.settings, "seed"), (plan.settings.lora, "rank")):
        assert isinstance(thing, BaseModel)
        with pytest.raises(ValidationError, match="frozen"):
            setattr(thing, name, None)
    with pytest.raises(AttributeError):
        plan.choices["seed"].value = 1


def test_json_reads_back_equal(asked):
    plugin = speaker("scheduler_rules", only("scheduler.name", "ddpm", because="we say so"))
    plan = make_kit(voice=plugin).plan({**asked, "trigger": "Zoë", "sampling": {"strengths": [0, 1]}})
    back = Plan.from_json(plan.to_json())
    assert back == plan
    assert back.to_json() == plan.to_json()
    assert json.loads(plan.to_json())["settings"]["trigger"] == "Zoë"


def test_a_plan_is_the_same_each_time(kit, asked):
    assert kit.plan(asked).to_json() == make_kit().plan(asked).to_json()


@pytest.mark.parametrize(
    "cut", [lambda text: text[:-20], lambda text: text.replace('"lora"', '"lara"'), lambda text: "[]"]
)
def test_a_broken_plan_is_refused(plan, cut):
    with pytest.raises(RunError, match=r"runs/x/plan\.json is not a plan.*another version"):
        Plan.from_json(cut(plan.to_json()), "runs/x/plan.json")


def test_with_settings_replaces_a_section_and_leaves_the_plan_as_it_was(plan):
    changed = plan.with_settings(seed=7)
    assert (changed.settings.seed, plan.settings.seed) == (7, 0)


def test_a_plan_names_its_plugins_with_their_versions(plan):
    assert plan.plugins == {"lorakit": plan.lorakit, "fake": ""}


# -- how long ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updates", "epochs", "batches", "accumulation", "agreed"),
    [
        (None, 10.0, 3400, 4, (8500, 10.0)),
        (None, 1.0, 10, 4, (3, 1.0)),  # the last update takes two batches
        (None, 0.01, 10, 4, (1, 0.01)),  # never none
        (8500, None, 3400, 4, (8500, 10.0)),
        (5, None, 10, 4, (5, 2.0)),
        (3, 1.0, 10, 4, (3, 1.0)),  # both, and they agree
        (None, 2.0, 0, 4, (0, 2.0)),  # no pictures yet
    ],
)
def test_updates_and_epochs_agree(updates, epochs, batches, accumulation, agreed):
    assert agree(updates, epochs, batches, accumulation) == agreed


def test_updates_and_epochs_that_disagree_are_refused_with_the_arithmetic():
    with pytest.raises(ConfigError) as caught:
        agree(100, 10.0, 3400, 4)
    assert all(
        word in str(caught.value) for word in ("100", "10 epochs", "3400", "8500", "accumulation 4", "Leave one")
    )


def test_the_users_disagreement_is_refused(kit, asked):
    with pytest.raises(ConfigError, match="disagree"):
        kit.plan({**asked, "train": {"updates": 3, "epochs": 10}})
    train = kit.plan({**asked, "train": {"updates": 40, "epochs": 10}}).settings.train
    assert (train.updates, train.epochs) == (40, 10.0)


@pytest.mark.parametrize(
    ("preset", "user", "meant"),
    [
        ({"epochs": 10}, {"updates": 3}, (3, 0.75)),
        ({"updates": 100}, {"epochs": 2}, (8, 2.0)),
        ({"epochs": 10}, {"epochs": 2}, (8, 2.0)),
        ({"epochs": 10}, {}, (40, 10.0)),
        ({}, {}, (40, 10.0)),
    ],
)
def test_the_users_length_counts_above_the_presets(kit, asked, preset, user, meant):
    request = kit.request(
        Layer({"train": preset}, "preset fake/x", "preset"), Layer({**asked, "train": user}, "run.toml")
    )
    plan = kit.plan(request)
    assert (plan.settings.train.updates, plan.settings.train.epochs) == meant
    owners = {plan.choices[f"train.{name}"].decided_by for name in user or preset}
    assert owners == ({"run.toml"} if user else {"preset fake/x"} if preset else set())


def test_no_length_at_all_is_ten_epochs(kit, asked):
    choice = kit.plan(asked).choices["train.epochs"]
    assert (choice.value, choice.decided_by, choice.because) == (10.0, "lorakit", "neither updates nor epochs are set")


# -- the seed's own case -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seed_plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seed") / "40_maya"
    picture(folder / "0.png", (64, 64), "maya_char on a bench")
    return Kit().plan({"family": "qwen", "trigger": "maya_char", "data": [{"folder": str(folder)}]})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("preset", "qwen/character"),
        ("lora.rank", 16),
        ("lora.alpha", 16.0),
        ("optimizer.learning_rate", 2e-4),
        ("optimizer.name", "adamw8bit"),
        ("train.epochs", 10.0),
        ("train.updates", 100),
        ("train.accumulation", 4),
        ("train.caption_dropout", 0.05),
        ("train.resolution", 1024),
        ("scheduler.name", "flowmatch"),
        ("quantization.name", "int8"),
        ("text_encoder.train", False),
        ("sampling.guidance", 3.5),
        ("sampling.steps", 28),
        ("save.every", "epoch"),
        ("save.keep", 10),
    ],
)
def test_the_character_preset_is_the_seeds_configuration(seed_plan, path, value):
    assert seed_plan.choices[path].value == value
    assert seed_plan.errors == ()


def test_the_seeds_own_edit_model_needs_no_references(tmp_path):
    picture(tmp_path / "40_maya" / "0.png", (64, 64), "a bench")
    asked = {"family": "qwen", "variant": "edit-2509", "trigger": "maya", "data": [{"folder": str(tmp_path)}]}
    plan = Kit().plan(asked)
    assert plan.settings.model.source == "Qwen/Qwen-Image-Edit-2509"
    assert plan.settings.text_encoder.template == "edit"
    assert plan.errors == ()


@pytest.mark.parametrize("variant", ["small", "large", "quick"])
def test_a_plan_is_asked_again_with_a_change_whatever_its_variant_reads(kit, asked, variant):
    """Some variants refuse a negative prompt: its default must not count as asked for."""
    plan = kit.plan({**asked, "variant": variant})
    again = kit.plan(asked_again(plan, [Layer({"train": {"updates": 9}}, "--set")], kit.shelves.families["fake"]))
    assert again.settings.train.updates == 9
    assert again.settings.sampling == plan.settings.sampling

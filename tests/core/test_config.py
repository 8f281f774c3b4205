"""TOML, presets and --set to one request."""

import json

import jsonschema
import pytest

from lorakit.config import ALIASES, Layer, build, parse_set, read_toml, schema
from lorakit.errors import ConfigError
from lorakit.registry import Shelf
from lorakit.settings import Settings
from tests.core.fake import Fake, make_kit


def request(table, where="run.toml"):
    return build([Layer({"family": "fake", **table}, where)])


def refusal(table, where="run.toml"):
    with pytest.raises(ConfigError) as caught:
        request(table, where)
    return str(caught.value)


# -- unknown keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "unknown", "suggestion"),
    [
        ({"trian": {}}, "'trian'", "train"),
        ({"lora": {"rnak": 8}}, "'lora.rnak'", "lora.rank"),
        ({"train": {"batchsize": 2}}, "'train.batchsize'", "train.batch_size"),
        ({"rank": 8}, "'rank'", "lora.rank"),
        ({"lora": {"learning_rate": 1e-4}}, "'lora.learning_rate'", "optimizer.learning_rate"),
        ({"lr": 1e-4}, "'lr'", "optimizer.learning_rate"),
        ({"steps": 100}, "'steps'", "train.updates"),
        ({"train": {"steps": 100}}, "'train.steps'", "train.updates"),
        ({"train": {"gradient_accumulation_steps": 2}}, "'train.gradient_accumulation_steps'", "train.accumulation"),
        ({"network_dim": 4}, "'network_dim'", "lora.rank"),
        ({"data": [{"folder_path": "x"}]}, "'data.folder_path'", "data.folder"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion_and_where_it_was_set(table, unknown, suggestion):
    message = refusal(table)
    assert unknown in message
    assert "run.toml" in message
    assert f"Did you mean {suggestion}" in message


def test_an_unknown_key_like_no_other_lists_what_is_known():
    message = refusal({"lora": {"zzz": 1}})
    assert "Did you mean" not in message
    assert "rank, alpha, targets, dropout" in message


def test_every_alias_leads_to_a_setting_that_exists():
    known = set(Settings.model_fields) | {
        f"{name}.{leaf}" for name, table in json.loads(schema())["properties"].items() for leaf in _section(name, table)
    }
    for ours in ALIASES.values():
        names = [word for word in ours.replace("(optimizer updates)", "").split() if word != "or"]
        assert set(names) <= known, ours


def _section(name, table):
    whole = json.loads(schema())
    table = table.get("items", table)
    if "$ref" not in table:
        return ()
    return whole["$defs"][table["$ref"].rpartition("/")[2]]["properties"]


# -- wrong values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"lora": {"rank": 0}}, "lora.rank"),
        ({"lora": {"rank": "16"}}, "lora.rank"),
        ({"lora": {"rank": True}}, "lora.rank"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout"),
        ({"lora": {"targets": []}}, "lora.targets"),
        ({"train": {"epochs": 0}}, "train.epochs"),
        ({"train": {"epochs": float("nan")}}, "train.epochs"),
        ({"train": {"precision": "fp16"}}, "train.precision"),
        ({"train": {"gradient_checkpointing": "yes"}}, "train.gradient_checkpointing"),
        ({"optimizer": {"betas": [0.9, 1.5]}}, "optimizer.betas.1"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas"),
        ({"sampling": {"prompts": "a cat"}}, "sampling.prompts"),
        ({"data": [{"folder": 3}]}, "data.0.folder"),
        ({"data": [{}]}, "data.0"),
        ({"seed": -1}, "seed"),
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),
        ({"scheduler": {"timesteps": "sigmoid", "mean": 1.0}}, "mean and std have no effect"),
        ({"scheduler": {"timesteps": "uniform", "shift": 2.0}}, "shift has no effect"),
    ],
)
def test_a_wrong_value_is_named_with_where_it_was_set(table, named):
    message = refusal(table)
    assert named in message
    assert "Set in run.toml" in message
    assert "pydantic" not in message


def test_a_wrong_value_of_two_kinds_says_both_and_counts_one_setting():
    message = refusal({"save": {"every": "daily"}})
    assert "integer" in message
    assert "'epoch'" in message
    assert "more setting" not in message


def test_further_wrong_settings_are_counted():
    assert "1 more setting also" in refusal({"lora": {"rank": 0}, "seed": -1})
    assert "2 more settings also" in refusal({"lora": {"rank": 0}, "seed": -1, "name": ""})


@pytest.mark.parametrize(
    ("table", "form"),
    [
        ({"train": 5}, "[train]"),
        ({"lora": [{"rank": 4}]}, "[lora]"),
        ({"data": {"folder": "x"}}, "[[data]]"),
        ({"data": "x"}, "[[data]]"),
        ({"data": ["x"]}, "[[data]]"),
        ({"seed": {"a": 1}}, "'seed' is a value"),
        ({"lora": {"rank": {"a": 1}}}, "'lora.rank' is a value"),
    ],
)
def test_a_section_and_a_value_are_not_confused(table, form):
    message = refusal(table)
    assert form in message
    assert "run.toml" in message


def test_each_layer_is_blamed_for_its_own_mistakes():
    layers = [Layer({"family": "fake", "lora": {"rank": 4}}, "run.toml"), Layer({"lora": {"alpha": -1.0}}, "--set")]
    with pytest.raises(ConfigError, match=r"lora\.alpha.*Set in --set"):
        build(layers)


# -- merging and origins -----------------------------------------------------------------------------------------


def test_later_layers_override_leaf_by_leaf_and_lists_as_a_whole():
    merged = build(
        [
            Layer(
                {"family": "fake", "lora": {"rank": 4, "alpha": 2}, "data": [{"folder": "a"}, {"folder": "b"}]}, "one"
            ),
            Layer({"lora": {"rank": 8}, "data": [{"folder": "c"}]}, "two"),
        ]
    )
    assert (merged.settings.lora.rank, merged.settings.lora.alpha) == (8, 2)
    assert [one.folder for one in merged.settings.data] == ["c"]
    assert (merged.where("lora.rank"), merged.where("lora.alpha"), merged.where("lora.dropout")) == ("two", "one", "")


def test_layers_are_not_changed_by_merging():
    first = Layer({"family": "fake", "lora": {"rank": 4}}, "one")
    build([first, Layer({"lora": {"rank": 8}}, "two")])
    assert first.table == {"family": "fake", "lora": {"rank": 4}}


def test_a_request_says_who_asked():
    merged = request({"scheduler": {"name": "ddpm"}})
    [asked] = merged.asked("scheduler.name")
    assert (asked.value, asked.where, asked.by) == ("ddpm", "run.toml", "user")
    assert merged.asked("quantization.name") == ()


def test_a_host_may_pass_tuples_and_paths(tmp_path):
    assert request({"data": ({"folder": tmp_path},)}).settings.data[0].folder == str(tmp_path)


def test_no_family():
    with pytest.raises(ConfigError, match=r"--family NAME.*lorakit families"):
        make_kit().request({"trigger": "sks"})


# -- presets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def preset_kit(tmp_path):
    """A kit whose fake family has presets, one of which belongs to another family."""
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "usual.toml").write_text('family = "fake"\n[lora]\nrank = 4\nalpha = 2\n')
    (folder / "small.toml").write_text("[lora]\nrank = 2\n")
    (folder / "stray.toml").write_text('family = "other"\n')

    class Usual(Fake):
        default_preset = "usual"

    kit = make_kit(Usual())
    for file in folder.glob("*.toml"):
        kit.shelves.presets.add(f"fake/{file.stem}", file, "test")
    kit.shelves.presets.add("other/anything", folder / "small.toml", "test")
    return kit


def test_a_preset_lies_below_the_user(preset_kit):
    got = preset_kit.request({"family": "fake", "preset": "usual", "lora": {"rank": 8}})
    assert (got.settings.lora.rank, got.settings.lora.alpha) == (8, 2)
    assert got.origins["lora.rank"].by == "user"
    assert (got.origins["lora.alpha"].by, got.where("lora.alpha")) == ("preset", "preset fake/usual")


def test_the_familys_preset_is_the_default_and_none_is_none(preset_kit):
    assert preset_kit.request({"family": "fake"}).settings.lora.rank == 4
    assert preset_kit.request({"family": "fake", "preset": "none"}).settings.lora.rank == 16


def test_the_last_layer_that_names_a_preset_chooses_it(preset_kit):
    got = preset_kit.request({"family": "fake", "preset": "usual"}, Layer({"preset": "fake/small"}, "--preset"))
    assert got.settings.lora.rank == 2


def test_an_unknown_preset(preset_kit):
    with pytest.raises(ConfigError, match=r"'fake/usal'.*the call.*'fake/usual'"):
        preset_kit.request({"family": "fake", "preset": "usal"})


@pytest.mark.parametrize(("name", "owner"), [("stray", "other"), ("other/anything", "other")])
def test_a_preset_of_another_family_is_refused_with_the_reason(preset_kit, name, owner):
    with pytest.raises(ConfigError) as caught:
        preset_kit.request({"family": "fake", "preset": name})
    message = str(caught.value)
    assert all(
        word in message for word in (f"'{owner}'", "'fake'", "the call", "another architecture", "--family other")
    )


def test_a_mistake_in_a_preset_names_the_preset(preset_kit, tmp_path):
    (tmp_path / "presets" / "usual.toml").write_text("[lora]\nrnak = 4\n")
    with pytest.raises(ConfigError, match=r"lora\.rnak.*preset fake/usual"):
        preset_kit.request({"family": "fake"})


def test_presets_come_from_the_shelf_alone():
    with pytest.raises(ConfigError, match="no installed plugin brings a preset"):
        Shelf("preset").find("fake/usual")


# -- names of other trainers in [sampling] -----------------------------------------------------------------------


def test_sampling_by_other_names_is_taken_and_said(kit, asked):
    theirs = {"guidance_scale": 3.5, "sample_steps": 28, "neg": "blurry"}
    plan = kit.plan(kit.request(Layer({**asked, "sampling": theirs}, "run.toml")))
    sampling = plan.settings.sampling
    assert (sampling.guidance, sampling.steps, sampling.negative) == (3.5, 28, "blurry")
    assert plan.choices["sampling.steps"].decided_by == "run.toml"
    said = {problem.message for problem in plan.problems if problem.severity == "warning"}
    assert {
        "sampling.guidance_scale is called sampling.guidance here; it is true classifier-free guidance",
        "sampling.sample_steps is called sampling.steps here",
        "sampling.neg is called sampling.negative here",
    } <= said
    ours = kit.plan({**asked, "sampling": {"guidance": 3.5, "steps": 28, "negative": "blurry"}})
    assert ours.settings == plan.settings
    assert not any("is called" in problem.message for problem in ours.problems)


def test_other_names_override_and_are_overridden_as_ours():
    layers = [
        Layer({"family": "fake", "sampling": {"guidance": 2, "sample_steps": 9}}, "one"),
        Layer({"sampling": {"guidance_scale": 3, "steps": 8}}, "two"),
    ]
    found = build(layers)
    assert (found.settings.sampling.guidance, found.settings.sampling.steps) == (3, 8)
    assert found.where("sampling.guidance") == "two"


def test_both_names_of_one_setting_are_refused():
    assert "sampling.neg and sampling.negative are the same" in refusal({"sampling": {"neg": "a", "negative": "b"}})


@pytest.mark.parametrize("table", [{"guidance_scale": 3.5}, {"train": {"sample_steps": 28}}, {"neg": "x"}])
def test_other_names_count_in_sampling_alone(table):
    assert "there is no setting" in refusal(table)


def test_a_negative_prompt_is_a_text_by_either_name():
    for name in ("neg", "negative"):
        assert "sampling.negative: " in refusal({"sampling": {name: 3}})


# -- files -------------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_bytes(b'\xef\xbb\xbffamily = "fake"\n')
    assert read_toml(file) == {"family": "fake"}


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file .*run\.toml.*path"):
        read_toml(tmp_path / "run.toml")


@pytest.mark.parametrize(
    ("content", "why"),
    [(b'family = "fake"\n[lora\n', "line 2"), (b"a = 1\na = 2\n", "overwrite"), (b'family = "\xff"\n', "UTF-8")],
)
def test_a_file_that_is_not_toml_says_where(tmp_path, content, why):
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_toml(file)
    assert "run.toml" in str(caught.value)
    assert why in str(caught.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)


# -- --set -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("seed=3", {"seed": 3}),
        ("train.epochs = 2.5", {"train": {"epochs": 2.5}}),
        ("optimizer.learning_rate=2e-4", {"optimizer": {"learning_rate": 2e-4}}),
        ("trigger=maya char", {"trigger": "maya char"}),
        ('trigger="maya"', {"trigger": "maya"}),
        ("trigger=a=b", {"trigger": "a=b"}),
        ("trigger=", {"trigger": ""}),
        ("train.gradient_checkpointing=false", {"train": {"gradient_checkpointing": False}}),
        ("sampling.prompts=['a', 'b']", {"sampling": {"prompts": ["a", "b"]}}),
        ("data=[{folder = 'a'}]", {"data": [{"folder": "a"}]}),
    ],
)
def test_set(text, table):
    assert parse_set(text) == table


@pytest.mark.parametrize("text", ["seed", "=3", "", "a..b=1", ".a=1", "a.=1"])
def test_set_of_the_wrong_form(text):
    with pytest.raises(ConfigError, match=r"--set .*key=value.*train\.epochs=5"):
        parse_set(text)


# -- the JSON schema ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    table = json.loads(schema())
    jsonschema.Draft202012Validator.check_schema(table)
    assert table["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$schema"]
    return jsonschema.Draft202012Validator(table)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"lora": {"rank": 8, "alpha": 4}},
        {"data": [{"folder": "a", "repeats": 3}], "save": {"every": "epoch"}},
        {"optimizer": {"betas": [0.9, 0.99]}, "train": {"updates": 100}},
        {"sampling": {"prompts": ["a cat"], "every": 0}},
    ],
)
def test_the_schema_and_the_loader_accept_the_same(validator, table):
    request(table)
    validator.validate({"family": "fake", **table})


@pytest.mark.parametrize(
    "table",
    [
        {"trian": {}},
        {"lora": {"rnak": 8}},
        {"data": [{"foldr": "x"}]},
        {"lora": {"rank": 0}},
        {"lora": {"rank": "16"}},
        {"lora": {"rank": True}},
        {"data": {"folder": "x"}},
        {"save": {"every": "daily"}},
        {"train": {"precision": "fp16"}},
        {"optimizer": {"betas": [0.9]}},
    ],
)
def test_the_schema_and_the_loader_refuse_the_same(validator, table):
    refusal(table)
    assert not validator.is_valid({"family": "fake", **table})


def test_the_schema_describes_every_setting(validator):
    sections = [validator.schema, *validator.schema["$defs"].values()]
    leaves = [
        (section["title"], name)
        for section in sections
        for name, leaf in section.get("properties", {}).items()
        if "description" not in leaf and "$ref" not in leaf and name != "data"
    ]
    assert leaves == []

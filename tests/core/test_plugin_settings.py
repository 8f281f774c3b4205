"""A plugin's own settings: `[plugin.NAME]`, checked, completed, kept in the plan and shown."""

import json

import jsonschema
import pytest
import tomli
from pydantic import BaseModel, Field

from lorakit import Layer, Plan, Section, hookimpl, prefer
from lorakit.changes import asked_again
from lorakit.config import schema
from lorakit.errors import ConfigError, PluginError
from lorakit.explain import to_toml
from tests.core.fake import make_kit


class Inner(Section):
    depth: int = 3


class House(Section):
    card: float = Field(80.0, gt=0, description="GB of our cards.")
    tags: tuple[str, ...] = ()
    inner: Inner = Inner()


class Plugin:
    """Brings settings, and has a rule that reads them."""

    def __init__(self, model=House) -> None:
        self.model = model

    @hookimpl
    def register(self, registry):
        registry.settings(self.model)

    @hookimpl
    def quantization_rules(self, request):
        if request.settings.plugin["house"]["card"] < 40:
            yield prefer("quantization.name", "int8", because="our card is small")


@pytest.fixture
def kit():
    return make_kit(house=Plugin())


def test_defaults_are_in_every_plan(kit, asked):
    plan = kit.plan(asked)
    assert plan.settings.plugin == {"house": {"card": 80.0, "tags": [], "inner": {"depth": 3}}}
    assert plan.choices["plugin.house.card"].because == "default"
    assert House.model_validate(plan.settings.plugin["house"]) == House()


def test_what_is_said_reaches_rules_and_the_plan_and_is_shown(kit, asked):
    said = Layer({"plugin": {"house": {"card": 24, "tags": ["a"], "inner": {"depth": 1}}}}, "run.toml")
    plan = kit.plan(kit.request(Layer(asked, "the call"), said))
    assert plan.settings.quantization.name == "int8"
    assert plan.choices["plugin.house.card"].decided_by == "run.toml"
    assert Plan.from_json(plan.to_json()) == plan
    shown = "\n".join(to_toml(plan))
    assert "[plugin.house]\ncard = 24.0 " in shown
    again = kit.plan(tomli.loads(shown))
    assert again.settings == plan.settings


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"crd": 1}, "there is no setting 'plugin.house.crd'. Set in run.toml. Did you mean plugin.house.card?"),
        ({"inner": {"dpth": 1}}, "there is no setting 'plugin.house.inner.dpth'. Set in run.toml. Did you mean"),
        ({"card": -1}, "plugin.house.card: should be greater than 0, but is -1. Set in run.toml"),
        ({"card": True}, "plugin.house.card: should be a valid number, but is True. Set in run.toml"),
        ({"card": float("nan")}, "plugin.house.card: should be a finite number"),
        ({"tags": "a"}, "plugin.house.tags: should be a valid array"),
        ({"card": {"x": 1}}, "'plugin.house.card' is a value, not a section"),
    ],
)
def test_what_cannot_be_is_refused_with_where_it_was_said(kit, asked, table, said):
    with pytest.raises(ConfigError) as caught:
        kit.plan(kit.request(Layer(asked, "the call"), Layer({"plugin": {"house": table}}, "run.toml")))
    assert str(caught.value).startswith(said)


def test_a_plugin_that_is_not_there_or_has_none_is_named(kit, asked):
    with pytest.raises(
        ConfigError, match=r"no plugin 'huose' has settings. Set in the call. Did you mean .plugin.house"
    ):
        kit.plan({**asked, "plugin": {"huose": {"card": 1}}})
    with pytest.raises(ConfigError, match=r"no plugin 'house' has settings.*Those that have are none"):
        make_kit().plan({**asked, "plugin": {"house": {}}})
    with pytest.raises(ConfigError, match=r"plugin.house: should be an object"):
        kit.plan({**asked, "plugin": {"house": 1}})


def test_a_run_that_goes_on_keeps_them_and_needs_the_plugin(kit, asked):
    plan = kit.plan({**asked, "plugin": {"house": {"card": 24}}})
    again = asked_again(plan, (), kit.shelves.families["fake"])
    assert kit.plan(again).settings == plan.settings
    with pytest.raises(ConfigError, match=r"no plugin 'house' has settings. Set in .*plan.json"):
        make_kit().plan(again)


class Plain(BaseModel):
    card: int = 1


class Needy(Section):
    card: int


@pytest.mark.parametrize(
    ("name", "model", "said"),
    [
        ("house", Plain, "they are no subclass of lorakit.Section"),
        ("house", Needy, "card has no default"),
        ("our house", House, "a table cannot be called like it"),
    ],
)
def test_settings_that_cannot_be_used_are_the_plugins_fault(name, model, said):
    with pytest.raises(PluginError, match=said):
        make_kit(**{name: Plugin(model)})


def test_the_schema_has_them(kit):
    table = json.loads(schema(kit.shelves.settings))
    check = jsonschema.Draft202012Validator(table)
    check.check_schema(table)
    assert check.is_valid({"family": "fake", "plugin": {"house": {"card": 24, "inner": {"depth": 1}}}})
    assert not check.is_valid({"family": "fake", "plugin": {"house": {"crd": 24}}})
    assert not check.is_valid({"family": "fake", "plugin": {"house": {"inner": {"depth": "deep"}}}})
    assert (
        table["properties"]["plugin"]["properties"]["house"]["properties"]["card"]["description"] == "GB of our cards."
    )

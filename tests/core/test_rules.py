"""Rules meet; they do not race."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit import hookimpl
from lorakit.errors import ConfigError, ConflictError, LorakitError, PluginError, RuleError
from lorakit.rules import Asked, Field, Voice, never, only, prefer, settle
from tests.core.fake import Fake, make_kit, speaker

COLOURS = Field("paint.colour", "paint_rules", ("red", "green", "blue"), "red", "red is usual")
OPEN = Field("paint.coats", "paint_rules", None, 1, "one coat is usual")
SWITCH = Field("paint.gloss", "paint_rules", (False, True, 1, 0), False, "matt is usual")


def colour(kind, *values, because="it looks well"):
    return kind("paint.colour", *values, because=because)


def said(rule, owner="ann", scope="plugin"):
    return Voice(rule, owner, scope)


def test_nobody_speaks_and_the_default_stands():
    choice = settle(COLOURS, ())
    assert (choice.value, choice.decided_by, choice.because) == ("red", "lorakit", "red is usual")


def test_the_user_counts_above_the_preset_and_the_preset_above_any_wish():
    wish = said(colour(prefer, "green"))
    user, preset = Asked("blue", "run.toml"), Asked("red", "preset fake/x", "preset")
    assert settle(COLOURS, [wish], [preset, user]).value == "blue"
    assert settle(COLOURS, [wish], [preset]).decided_by == "preset fake/x"
    assert settle(COLOURS, [wish]).value == "green"


def test_wishes_count_by_scope():
    family, plugin = said(colour(prefer, "blue"), "family fake", "family"), said(colour(prefer, "green"))
    assert settle(COLOURS, [family, plugin]).value == "green"
    assert settle(COLOURS, [family]).decided_by == "family fake"


def test_narrowing_is_intersection():
    choice = settle(COLOURS, [said(colour(only, "red", "blue")), said(colour(never, "red", because="rust"), "bob")])
    assert choice.value == "blue"
    assert choice.decided_by == "ann, bob"
    assert "rust" in choice.because


def test_nothing_left_names_every_voice_and_reason():
    voices = [said(colour(only, "red", because="warmth")), said(colour(never, "red", because="rust"), "bob")]
    with pytest.raises(ConflictError) as caught:
        settle(COLOURS, voices)
    assert all(word in str(caught.value) for word in ("paint.colour", "ann", "warmth", "bob", "rust", "--without"))


def test_nothing_left_is_refused_even_when_the_user_chose():
    with pytest.raises(ConflictError):
        settle(COLOURS, [said(colour(never, "red", "green", "blue"))], [Asked("red", "run.toml")])


@pytest.mark.parametrize("rule", [colour(never, "green", because="envy"), colour(only, "red", because="envy")])
def test_a_rule_refuses_what_the_user_asked_for(rule):
    with pytest.raises(RuleError) as caught:
        settle(COLOURS, [said(rule)], [Asked("green", "run.toml")])
    message = str(caught.value)
    assert all(word in message for word in ("paint.colour = 'green'", "run.toml", "ann", "envy", "'red'"))
    assert "leave the setting out" in message


def test_a_rule_refuses_the_preset_too():
    with pytest.raises(RuleError, match="choose another preset"):
        settle(COLOURS, [said(colour(never, "green"))], [Asked("green", "preset fake/x", "preset")])


def test_a_refused_preset_does_not_matter_once_the_user_chose():
    asked = [Asked("green", "preset fake/x", "preset"), Asked("red", "run.toml")]
    assert settle(COLOURS, [said(colour(never, "green"))], asked).value == "red"


def test_two_wishes_in_one_scope_conflict_until_the_user_chooses():
    voices = [said(colour(prefer, "green", because="grass")), said(colour(prefer, "blue", because="sky"), "bob")]
    with pytest.raises(ConflictError) as caught:
        settle(COLOURS, voices)
    assert all(word in str(caught.value) for word in ("ann", "grass", "bob", "sky", "--set paint.colour="))
    assert settle(COLOURS, voices, [Asked("red", "run.toml")]).value == "red"


def test_one_wish_said_twice_is_no_conflict():
    assert settle(COLOURS, [said(colour(prefer, "blue")), said(colour(prefer, "blue"), "bob")]).value == "blue"


def test_a_wish_that_the_rules_exclude_is_not_heard():
    voices = [said(colour(prefer, "green")), said(colour(prefer, "blue"), "bob"), said(colour(never, "green"), "cy")]
    assert settle(COLOURS, voices).value == "blue"


def test_an_excluded_default_needs_a_wish_or_a_user():
    ban = said(colour(never, "red", because="rust"))
    with pytest.raises(ConflictError, match=r"rust.*Choose one of 'green', 'blue'"):
        settle(COLOURS, [ban])
    assert settle(COLOURS, [ban, said(colour(prefer, "blue"))]).value == "blue"


def test_a_choice_keeps_every_voice():
    voices = [said(colour(prefer, "blue", because="sky")), said(colour(never, "red", because="rust"), "bob")]
    assert settle(COLOURS, voices, [Asked("green", "run.toml")]).voices == (
        "ann says prefer 'blue', because sky",
        "bob says never 'red', because rust",
    )


def test_a_rule_about_another_field_or_an_unknown_value_is_the_plugins_fault():
    with pytest.raises(PluginError, match=r"ann.*paint\.brush"):
        settle(COLOURS, [said(only("paint.brush", "fine", because="detail"))])
    with pytest.raises(PluginError, match=r"ann.*'mauve'.*'red', 'green', 'blue'"):
        settle(COLOURS, [said(colour(never, "mauve"))])


def test_an_unknown_value_asked_for_is_the_users_fault():
    with pytest.raises(ConfigError, match=r"'mauve'.*run\.toml.*'green'"):
        settle(COLOURS, (), [Asked("mauve", "run.toml")])


def test_a_rule_needs_a_reason_and_a_value():
    with pytest.raises(PluginError, match="reason"):
        only("paint.colour", "red", because=" ")
    with pytest.raises(PluginError, match="value"):
        never("paint.colour", because="no")


def test_true_and_1_are_kept_apart():
    choice = settle(SWITCH, [said(only("paint.gloss", 1, because="a coat"))])
    assert choice.value == 1
    assert choice.value is not True
    with pytest.raises(RuleError):
        settle(SWITCH, [said(never("paint.gloss", True, because="glare"))], [Asked(True, "run.toml")])
    assert settle(SWITCH, [said(never("paint.gloss", True, because="glare"))], [Asked(1, "run.toml")]).value == 1


def test_an_open_field_takes_any_value_that_no_rule_excludes():
    assert settle(OPEN, (), [Asked(7, "run.toml")]).value == 7
    assert settle(OPEN, [said(prefer("paint.coats", 2, because="depth"))]).value == 2
    assert settle(OPEN, [said(only("paint.coats", 3, because="law"))]).value == 3
    narrowed = [said(only("paint.coats", 1, 2, because="law")), said(only("paint.coats", 2, 3, because="cost"), "bob")]
    assert settle(OPEN, narrowed).value == 2
    with pytest.raises(RuleError, match="law"):
        settle(OPEN, narrowed, [Asked(3, "run.toml")])


def test_an_open_field_whose_default_is_excluded_says_what_to_do():
    with pytest.raises(ConflictError, match="Choose another: --set"):
        settle(OPEN, [said(never("paint.coats", 1, because="thin"))])


def test_4_and_4_0_are_one_wish():
    voices = [said(prefer("paint.coats", 4, because="a")), said(prefer("paint.coats", 4.0, because="b"), "bob")]
    assert settle(OPEN, voices).value == 4


# -- order never matters -----------------------------------------------------------------------------------------


def outcome(field, voices, asked):
    """The choice, or the whole error: both must be the same in every order."""
    try:
        return settle(field, voices, asked)
    except LorakitError as error:
        return type(error), str(error)


VALUES = st.sampled_from(["red", "green", "blue"])
RULES = st.one_of(
    st.builds(
        lambda values, why: colour(only, *values, because=why), st.sets(VALUES, min_size=1), st.text("xy", min_size=1)
    ),
    st.builds(
        lambda values, why: colour(never, *values, because=why), st.sets(VALUES, min_size=1), st.text("xy", min_size=1)
    ),
    st.builds(lambda value, why: colour(prefer, value, because=why), VALUES, st.text("xy", min_size=1)),
)
VOICES = st.lists(
    st.builds(Voice, RULES, st.sampled_from("abc"), st.sampled_from(["plugin", "family", "core"])), max_size=6
)
ASKED = st.lists(
    st.builds(Asked, VALUES, st.just("somewhere"), st.sampled_from(["user", "preset"])),
    max_size=2,
    unique_by=lambda a: a.by,
)


@given(VOICES.flatmap(lambda voices: st.tuples(st.just(voices), st.permutations(voices))), ASKED)
def test_settle_is_the_same_in_any_order_of_voices(orders, asked):
    one, other = orders
    assert outcome(COLOURS, one, asked) == outcome(COLOURS, other, asked[::-1])


@given(VOICES, ASKED)
def test_settle_never_breaks_a_rule_nor_overrides_the_user(voices, asked):
    choice = outcome(COLOURS, voices, asked)
    if isinstance(choice, tuple):
        return
    for voice in voices:
        assert voice.rule.kind != "only" or choice.value in voice.rule.values
        assert voice.rule.kind != "never" or choice.value not in voice.rule.values
    assert all(wish.value == choice.value for wish in asked if wish.by == "user")


def test_every_registration_order_gives_one_identical_plan(asked):
    plugins = {
        "narrow": speaker("scheduler_rules", only("scheduler.name", "flowmatch", "ddpm", because="these two work")),
        "forbid": speaker("scheduler_rules", never("scheduler.name", "ddpm", because="it is old")),
        "shift": speaker("scheduler_rules", prefer("scheduler.timesteps", "shift", because="it suits large pictures")),
        "same": speaker("scheduler_rules", prefer("scheduler.timesteps", "shift", because="we measured it")),
        "eight": speaker("quantization_rules", prefer("quantization.name", "int8", because="it fits")),
    }
    plans = [make_kit(**dict(order)).plan(asked) for order in itertools.permutations(plugins.items())]
    written = {plan.to_json() for plan in plans}
    assert len(plans) == 120
    assert len(written) == 1
    assert plans[0].settings.scheduler.timesteps == "shift"
    assert plans[0].settings.quantization.name == "int8"


def test_an_installed_plugin_wishes_above_the_family(asked):
    class Wishing(Fake):
        @hookimpl
        def quantization_rules(self, request):
            yield prefer("quantization.name", "int3", because="the family thinks so")

    family = Wishing()
    assert make_kit(family).plan(asked).settings.quantization.name == "int3"
    house = speaker("quantization_rules", prefer("quantization.name", "int8", because="the house thinks so"))
    choice = make_kit(family, house=house).plan(asked).choices["quantization.name"]
    assert (choice.value, choice.decided_by) == ("int8", "house")
    assert any(voice.startswith("family fake says prefer") for voice in choice.voices)

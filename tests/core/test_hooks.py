"""Every hook, and every way in which a plugin can break its contract."""

import inspect
import sys
from importlib.metadata import EntryPoint

import click
import pytest

from lorakit import Family, Kit, Problem, hookimpl, hooks, never, only, prefer
from lorakit.errors import ConflictError, PluginError, RuleError
from lorakit.events import PhaseStarted, RunFinished, Warned
from lorakit.observers import observed
from lorakit.plugins import manager
from tests.core.fake import Fake, FakePlugin, make_kit, part, speaker

ALL = [name for name, found in inspect.getmembers(hooks, inspect.isfunction) if hasattr(found, "lorakit_spec")]


def test_there_are_eight_hooks_and_each_has_a_test():
    assert len(ALL) == 8
    assert [name for name in ALL if f"test_hook_{name}" not in globals()] == []


# -- one test for each hook --------------------------------------------------------------------------------------


def test_hook_register():
    class Shop:
        @hookimpl
        def register(self, registry):
            registry.optimizer(part("lion"))

    shelves = make_kit(shop=Shop()).shelves
    assert shelves.optimizers["lion"].summary == "the lion"
    assert shelves.optimizers.owner("lion") == "shop"


def test_hook_register_commands():
    class Greeter:
        @hookimpl
        def register_commands(self, cli):
            return cli.command("hello")(lambda: None)

    group = click.Group()
    make_kit(greeter=Greeter()).commands(group)
    assert list(group.commands) == ["hello"]


def test_rules_see_what_other_plugins_bring():
    class Shop:
        @hookimpl
        def register(self, registry):
            registry.quantizer(part("int5"))

    class Thrifty:
        @hookimpl
        def quantization_rules(self, request, shelves):
            held = sorted(shelves.quantizers)
            yield only("quantization.name", "int5" if "int5" in held else "none", because="it is there")

    asked = {"family": "fake"}
    assert make_kit(thrifty=Thrifty(), shop=Shop()).plan(asked).settings.quantization.name == "int5"
    assert make_kit(thrifty=Thrifty()).plan(asked).settings.quantization.name == "none"


def test_a_command_brought_twice_names_both_plugins():
    class Greeter:
        @hookimpl
        def register_commands(self, cli):
            cli.command("hello")(lambda: None)

    with pytest.raises(PluginError, match=r"command 'hello' is brought by two plugins, east and west.*--without west"):
        make_kit(west=Greeter(), east=Greeter()).commands(click.Group())
    group = click.Group(commands={"hello": click.Command("hello")})
    with pytest.raises(PluginError, match="two plugins, lorakit and greeter"):
        make_kit(greeter=Greeter()).commands(group)


def test_rules_may_look_at_the_facts_of_the_family(asked):
    class Reader:
        @hookimpl
        def quantization_rules(self, family, request):
            yield prefer("quantization.name", "int3", because=f"{family.title} was named in {request.settings.family}")

    choice = make_kit(reader=Reader()).plan(asked).choices["quantization.name"]
    assert (choice.value, choice.because) == ("int3", "Fake was named in fake")


def test_hook_scheduler_rules(asked):
    plugin = speaker("scheduler_rules", only("scheduler.name", "ddpm", because="we say so"))
    choice = make_kit(voice=plugin).plan(asked).choices["scheduler.name"]
    assert (choice.value, choice.decided_by, choice.because) == ("ddpm", "voice", "we say so")


def test_hook_quantization_rules(asked):
    plugin = speaker("quantization_rules", never("quantization.name", "int3", because="it is too coarse"))
    with pytest.raises(RuleError, match=r"the call.*voice.*it is too coarse"):
        make_kit(voice=plugin).plan({**asked, "quantization": {"name": "int3"}})


def test_hook_text_encoder_rules(asked):
    plugin = speaker("text_encoder_rules", prefer("text_encoder.template", "fancy", because="it reads better"))
    assert make_kit(voice=plugin).plan(asked).settings.text_encoder.template == "fancy"


def test_hook_sampling_rules(asked):
    plugin = speaker("sampling_rules", prefer("sampling.guidance", 3, because="it follows the words"))
    assert make_kit(voice=plugin).plan(asked).settings.sampling.guidance == 3.0


def test_hook_check_plan(asked):
    class Inspector:
        @hookimpl
        def check_plan(self, plan):
            yield Problem(f"rank {plan.settings.lora.rank} is not ours", "error", owner="somebody else")

    kit = make_kit(inspector=Inspector())
    plan = kit.plan(asked)
    assert plan.errors == (Problem("rank 16 is not ours", "error", "inspector"),)
    with pytest.raises(Exception, match="rank 16 is not ours"):
        next(iter(kit.train(plan)))


def test_hook_on_event(asked):
    class Reader:
        def __init__(self) -> None:
            self.seen = []

        @hookimpl
        def on_event(self, event, plan):
            self.seen.append((type(event), plan.settings.name))

    reader = Reader()
    kit = make_kit(reader=reader)
    events = [PhaseStarted(phase="load"), PhaseStarted(phase="train")]
    assert list(observed(iter(events), kit.plan(asked), manager(kit.plugins))) == events
    assert reader.seen == [(PhaseStarted, "sks"), (PhaseStarted, "sks")]


# -- observers never stop training -------------------------------------------------------------------------------


def test_an_observer_that_raises_is_warned_of_once(asked):
    class Broken:
        @hookimpl
        def on_event(self, event):
            raise OSError("the disk is full")

    kit = make_kit(broken=Broken())
    events = [PhaseStarted(phase="load"), PhaseStarted(phase="train"), PhaseStarted(phase="save")]
    heard = list(observed(iter(events), kit.plan(asked), manager(kit.plugins)))
    assert [event for event in heard if not isinstance(event, Warned)] == events
    [warning] = [event for event in heard if isinstance(event, Warned)]
    assert "broken" in warning.message
    assert "the disk is full" in warning.message


def test_closing_the_reader_closes_the_run(asked, kit):
    closed = []

    def run():
        try:
            yield PhaseStarted(phase="load")
            yield RunFinished(update=1, folder="", lora="", proof="", seconds=1.0)
        finally:
            closed.append(True)

    events = observed(run(), kit.plan(asked), manager(kit.plugins))
    next(events)
    events.close()
    assert closed == [True]


# -- the family is a plugin for the length of its own run --------------------------------------------------------


def test_a_family_is_heard_only_in_its_own_runs(asked):
    class Strict(Fake):
        name = "strict"

        @hookimpl
        def scheduler_rules(self, request):
            yield only("scheduler.name", "ddpm", because="strict knows no other")

    class Both:
        @hookimpl
        def register(self, registry):
            registry.family(Strict())

    kit = make_kit(both=Both())
    assert kit.plan(asked).settings.scheduler.name == "flowmatch"
    assert kit.plan({**asked, "family": "strict"}).settings.scheduler.name == "ddpm"
    assert kit.plan(asked).settings.scheduler.name == "flowmatch"


# -- broken plugins ----------------------------------------------------------------------------------------------


def refused(**plugins):
    with pytest.raises(PluginError) as caught:
        make_kit(**plugins)
    return str(caught.value)


def test_a_misspelt_hook_is_named():
    message = refused(oops=speaker("schedular_rules"))
    assert "'oops'" in message
    assert "'schedular_rules'" in message
    assert "scheduler_rules" in message  # what is known
    assert "--without oops" in message


def test_a_misspelt_argument_is_named():
    class Oops:
        @hookimpl
        def scheduler_rules(self, requests):
            return ()

    message = refused(oops=Oops())
    assert "'oops'" in message
    assert "requests" in message


@pytest.mark.parametrize("old", [{"wrapper": True}, {"hookwrapper": True}])
def test_wrappers_are_refused(old):
    class Wrapping:
        @hookimpl(**old)
        def scheduler_rules(self, request):
            yield

    message = refused(wrapping=Wrapping())
    assert "'wrapping'" in message
    assert "wrapper" in message


def test_a_noun_brought_twice_names_both_plugins():
    class Copy:
        @hookimpl
        def register(self, registry):
            registry.scheduler(part("edm"))

    message = refused(copy=Copy())
    assert all(word in message for word in ("scheduler 'edm'", "fake", "copy", "--without"))


def test_two_plugins_of_one_name():
    with pytest.raises(PluginError, match=r"'lorakit'.*name already"):
        Kit(discover=False, plugins={"lorakit": FakePlugin()})


def test_a_family_that_lacks_facts_is_refused():
    facts = {name: value for name, value in vars(Fake).items() if name[0] != "_" and name != "side_multiple"}
    half = type("Half", (Family,), facts)
    with pytest.raises(PluginError, match=r"fake.*lacks side_multiple"):
        make_kit(half())


def test_a_family_whose_default_variant_does_not_exist_is_refused():
    class Lost(Fake):
        default_variant = "medium"

    with pytest.raises(PluginError, match="medium"):
        make_kit(Lost())


def test_a_preset_folder_that_does_not_exist_is_refused(tmp_path):
    class Empty:
        @hookimpl
        def register(self, registry):
            registry.presets("fake", tmp_path / "nothing")

    assert "empty names a preset folder that does not exist" in refused(empty=Empty())


@pytest.mark.parametrize("field", ["scheduler.nmae", "lora.rank", "quantization.name"])
def test_a_rule_on_a_field_that_its_hook_does_not_speak_about(asked, field):
    plugin = speaker("scheduler_rules", only(field, "flowmatch", because="we say so"))
    with pytest.raises(PluginError) as caught:
        make_kit(voice=plugin).plan(asked)
    assert all(word in str(caught.value) for word in ("voice", f"'{field}'", "scheduler_rules", "scheduler.timesteps"))


def test_a_rule_on_an_unknown_value(asked):
    plugin = speaker("scheduler_rules", only("scheduler.name", "magic", because="we say so"))
    with pytest.raises(PluginError, match=r"voice.*'magic'.*'ddpm', 'edm', 'flowmatch'"):
        make_kit(voice=plugin).plan(asked)


@pytest.mark.parametrize(("hook", "argument"), [("scheduler_rules", "request"), ("check_plan", "plan")])
def test_an_answer_of_the_wrong_kind(asked, hook, argument):
    with pytest.raises(PluginError, match=rf"voice answers {hook} with 'yes'"):
        make_kit(voice=speaker(hook, "yes", argument=argument)).plan(asked)


def test_a_wish_for_what_no_setting_can_be(asked):
    plugin = speaker("sampling_rules", prefer("sampling.guidance", "high", because="more is more"))
    with pytest.raises(PluginError, match=r"sampling\.guidance.*'high'.*voice chose it, because more is more"):
        make_kit(voice=plugin).plan(asked)


def test_a_rule_function_that_raises_is_named(asked):
    class Broken:
        @hookimpl
        def quantization_rules(self, request):
            yield prefer("quantization.name", "none", because="cheap")
            raise ZeroDivisionError("by zero")

    with pytest.raises(PluginError) as caught:
        make_kit(broken=Broken()).plan(asked)
    assert all(
        word in str(caught.value) for word in ("'broken'", "quantization_rules", "ZeroDivisionError", "--without")
    )


def test_a_hook_may_answer_nothing(asked):
    class Silent:
        @hookimpl
        def scheduler_rules(self, request):
            return None

        @hookimpl
        def check_plan(self, plan):
            return None

    assert make_kit(silent=Silent()).plan(asked).errors == ()


def test_rules_about_one_field_at_odds_name_both_plugins(asked):
    plugins = {
        "east": speaker("scheduler_rules", only("scheduler.name", "ddpm", because="of the east")),
        "west": speaker("scheduler_rules", only("scheduler.name", "flowmatch", because="of the west")),
    }
    with pytest.raises(ConflictError) as caught:
        make_kit(**plugins).plan(asked)
    assert all(word in str(caught.value) for word in ("east", "of the east", "west", "of the west"))


# -- installed plugins and files ---------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these entry points, by name and module, are all that is installed."""

    def pretend(**modules):
        entries = [EntryPoint(name, module, "lorakit") for name, module in modules.items()]
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries if group == "lorakit" else [])

    return pretend


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


OPTIMIZER = """
from lorakit import Part, hookimpl

@hookimpl
def register(registry):
    registry.optimizer(Part(name="{0}", summary="", load="{0}:make"))
"""


def test_an_installed_plugin_is_found_and_can_be_left_out(installed, module):
    installed(zeta=module("acme_zeta", OPTIMIZER.format("lion")), alpha=module("acme_alpha", OPTIMIZER.format("tiger")))
    assert [plugin.name for plugin in Kit().plugins] == ["lorakit", "alpha", "zeta"]
    assert "lion" in Kit().shelves.optimizers
    assert "lion" not in Kit(without=["zeta"]).shelves.optimizers
    assert "lion" not in Kit(discover=False).shelves.optimizers


def test_a_plugin_that_does_not_import_is_named_and_can_be_left_out(installed, module):
    installed(broken=module("acme_broken", "import nothing_of_this_name"), good=module("acme_good", ""))
    with pytest.raises(PluginError) as caught:
        Kit()
    assert all(
        word in str(caught.value) for word in ("'broken'", "acme_broken", "nothing_of_this_name", "--without broken")
    )
    assert [plugin.name for plugin in Kit(without=["broken"]).plugins] == ["lorakit", "good"]


def test_leaving_out_what_is_not_installed_is_refused(installed, module):
    installed(good=module("acme_good", ""))
    with pytest.raises(PluginError, match=r"'god'.*--without.*good"):
        Kit(without=["god"])


def test_two_installed_plugins_of_one_name_are_refused(monkeypatch, module):
    twins = [EntryPoint("twin", module(f"acme_{one}", ""), "lorakit") for one in ("a", "b")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: twins)
    with pytest.raises(PluginError, match="'twin'"):
        Kit()


def test_a_plugin_file(tmp_path):
    (tmp_path / "mine.py").write_text(OPTIMIZER.format("lion"))
    kit = Kit(discover=False, files=[tmp_path / "mine.py"])
    assert kit.shelves.optimizers.owner("lion") == "mine"


@pytest.mark.parametrize(("text", "why"), [(None, "there is no plugin file"), ("1 +", "SyntaxError")])
def test_a_plugin_file_that_does_not_load(tmp_path, text, why):
    file = tmp_path / "mine.py"
    if text:
        file.write_text(text)
    with pytest.raises(PluginError, match=rf"mine\.py.*--plugin.*{why}|{why}.*mine\.py.*--plugin"):
        Kit(discover=False, files=[file])

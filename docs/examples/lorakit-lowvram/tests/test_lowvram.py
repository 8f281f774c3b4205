"""Rules, command and events of the plugin, on families of the house."""

import pytest
from lorakit_lowvram import PLUGIN, card

from lorakit import Kit, LorakitError, Part, cli, hookimpl
from lorakit.errors import RuleError
from lorakit.events import RunFinished, UpdateFinished


@pytest.fixture
def kit():
    """Every installed plugin and this one, whether it is installed or not."""
    installed = {plugin.name for plugin in Kit().plugins}
    return Kit(without=installed & {"lowvram"}, plugins={"lowvram": PLUGIN})


def quantization(kit, **tables):
    return kit.plan({"family": "sdxl", "preset": "none", **tables}).choices["quantization.name"]


@pytest.mark.parametrize(("size", "expected"), [("24", "none"), ("6", "int8"), ("4", "int4")])
def test_the_finest_that_fits(kit, monkeypatch, size, expected):
    monkeypatch.setenv("LOWVRAM_GB", size)
    choice = quantization(kit)
    assert choice.value == expected
    assert (choice.decided_by == "lowvram") == (expected != "none")


def test_another_plugins_quantizer_is_weighed_too(kit, monkeypatch):
    class Ours:
        @hookimpl
        def register(self, registry):
            registry.quantizer(Part(name="int3", summary="ours", load="ours:Int3", held=0.4))

    monkeypatch.setenv("LOWVRAM_GB", "2.8")
    with_ours = Kit(discover=False, plugins={one.name: one.module for one in kit.plugins[1:]} | {"ours": Ours()})
    assert quantization(kit).value == "int2"
    assert quantization(with_ours).value == "int3"


def test_what_does_not_fit_is_refused(kit, monkeypatch):
    monkeypatch.setenv("LOWVRAM_GB", "6")
    with pytest.raises(RuleError, match="60% of a card of 6 GB"):
        quantization(kit, quantization={"name": "none"})


def test_without_a_card_it_says_nothing(kit, monkeypatch):
    monkeypatch.delenv("LOWVRAM_GB", raising=False)
    monkeypatch.setattr(card, "_measured", lambda: None)
    assert quantization(kit).value == "none"


@pytest.mark.parametrize("size", ["large", "-3"])
def test_no_size_of_a_card(kit, monkeypatch, size):
    monkeypatch.setenv("LOWVRAM_GB", size)
    with pytest.raises(LorakitError, match="no size of a card"):
        quantization(kit)


def test_the_command(kit, monkeypatch, capsys):
    monkeypatch.setenv("LOWVRAM_GB", "6")
    cli.build(kit).main(["fits"], standalone_mode=False)
    said = capsys.readouterr().out.splitlines()
    assert "sdxl       none          5.1 GB  too large" in said
    assert "sdxl       int8          2.9 GB  fits" in said


def test_what_a_run_took(kit, monkeypatch, tmp_path):
    monkeypatch.delenv("LOWVRAM_GB", raising=False)
    plan = kit.plan({"family": "sdxl", "preset": "none", "name": "run", "output": str(tmp_path)})
    plan.folder.mkdir()
    done = {"epoch": 1.0, "loss": 0.1, "learning_rate": 0.1, "grad_norm": 1.0, "seconds": 1.0}
    for number, memory in enumerate((5 * 10**9, 7 * 10**9, 6 * 10**9), 1):
        PLUGIN.on_event(UpdateFinished(update=number, passes=number, memory=memory, **done), plan)
    PLUGIN.on_event(RunFinished(update=3, folder="", lora="", proof="", seconds=1.0), plan)
    assert (plan.folder / "memory.txt").read_text() == "7.00 GB at most\n"

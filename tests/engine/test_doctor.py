"""`lorakit doctor` says what works, what is broken, and what to do about it."""

import json
from types import SimpleNamespace

import pytest
import torch

from lorakit import Kit, Part, hookimpl
from lorakit.cli import run
from lorakit.engine import doctor, trials
from lorakit.family import Family
from tests.core.fake import FakePlugin

CPU = torch.device("cpu")


class Broken:
    """A quantizer that answers well and passes no gradient on."""

    version, packed = 1, ("weight",)

    def convert(self, linear, device):
        return _Detached(linear)

    def holds(self, module):
        return isinstance(module, _Detached)


class _Detached(torch.nn.Module):
    def __init__(self, linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x.detach())


def still(groups, settings):
    """An optimizer that moves nothing."""
    return torch.optim.SGD(list(groups), lr=0.0)


class BrokenPlugin:
    @hookimpl
    def register(self, registry):
        registry.quantizer(Part(name="broken", summary="broken", load=f"{__name__}:Broken"))
        registry.quantizer(Part(name="absent", summary="absent", load="nowhere:x", requires=("no_such_thing",)))
        registry.optimizer(Part(name="still", summary="still", load=f"{__name__}:still"))


def by_subject(found):
    return {one.subject: one for one in found}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def whole(tmp_path, hub):
    """Everything that is said of this machine."""
    return by_subject(Kit().doctor(tmp_path / "runs"))


def test_what_works_is_said_to_work(whole):
    broken = {name: one for name, one in whole.items() if one.state == "problem"}
    assert not broken
    for name in Kit().shelves.quantizers:
        assert "works forward and backward" in whole[f"quantizer {name}"].said
    for name in Kit().shelves.optimizers:
        assert "makes an update" in whole[f"optimizer {name}"].said
    assert whole["attention math"].said.startswith("works")
    assert torch.__version__ in whole["torch"].said
    assert {
        "python",
        "diffusers",
        "transformers",
        "peft",
        "bitsandbytes",
        "memory",
        "output folder",
        "hub cache",
    } <= set(whole)


def test_the_command_prints_a_line_each_and_json(tmp_path, hub, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda shelves, output: iter(SAID))
    assert run(["doctor", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "ok       torch                2.0"
    assert "buy one" in said
    assert said.splitlines()[-1] == "0 problems, 1 warning"
    assert run(["doctor", "--json"]) == 0
    assert [one["state"] for one in json.loads(capsys.readouterr().out)] == ["ok", "warning"]
    monkeypatch.setattr(
        doctor, "examine", lambda shelves, output: iter([*SAID, trials.Examined("x", "problem", "bad", "mend")])
    )
    assert run(["doctor"]) == 1


SAID = [trials.Examined("torch", "ok", "2.0"), trials.Examined("device", "warning", "no GPU", "buy one")]


def test_what_is_broken_is_a_problem_and_what_is_absent_a_warning():
    shelves = Kit(discover=False, plugins={"broken": BrokenPlugin()}).shelves
    found = by_subject([*trials.quantizers(shelves, CPU), *trials.optimizers(shelves, CPU)])
    assert found["quantizer broken"].state == "problem"
    assert "gradient" in found["quantizer broken"].said
    assert found["quantizer absent"].state == "warning"
    assert found["quantizer absent"].remedy == "pip install no_such_thing, to use it."
    assert found["optimizer still"].state == "problem"
    assert found["quantizer int8"].state == found["optimizer adamw"].state == "ok"


def test_a_kernel_that_answers_wrongly_is_a_problem(monkeypatch):
    right = trials._attend

    def wrong(kernel, device):
        answer, gradient = right("MATH", device)
        return (answer + (kernel == "FLASH_ATTENTION"), gradient)

    monkeypatch.setattr(trials, "_attend", wrong)
    states = {one.subject: one.state for one in trials.attention(CPU)}
    assert states["attention flash"] == "problem"
    assert states["attention efficient"] == "ok"


def test_a_kernel_that_is_not_there(monkeypatch):
    def only_math(kernel, device):
        if kernel != "MATH":
            raise RuntimeError("No available kernel. Aborting execution.")
        return torch.zeros(1), torch.zeros(1)

    monkeypatch.setattr(trials, "_attend", only_math)
    assert {one.state for one in trials.attention(CPU)} == {"ok"}
    monkeypatch.setattr(trials, "CLOSE", 1.0)
    on_a_card = {one.subject: one for one in trials.attention(SimpleNamespace(type="cuda"))}
    assert on_a_card["attention flash"].state == "warning"
    assert "8.0" in on_a_card["attention flash"].remedy


def _tool(tmp_path, monkeypatch, text):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{text}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_a_card_that_torch_cannot_reach_is_a_problem(tmp_path, monkeypatch):
    _tool(tmp_path, monkeypatch, "echo 'NVIDIA L40S, 550.54.15, 46068 MiB, 3 MiB'")
    monkeypatch.setattr(torch.version, "cuda", None)
    found = by_subject(doctor.devices(CPU))
    assert "550.54.15" in found["driver"].said
    assert found["device"].state == "problem"
    assert "built for CPU" in found["device"].said
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "driver may be too old" in by_subject(doctor.devices(CPU))["device"].said
    _tool(tmp_path, monkeypatch, "exit 9")
    assert by_subject(doctor.devices(CPU))["device"].state == "warning"


@pytest.mark.parametrize(
    ("free", "major", "states"), [(46, 8, ["ok"]), (10, 8, ["warning"]), (46, 7, ["ok", "warning"])]
)
def test_a_card(monkeypatch, free, major, states):
    about = SimpleNamespace(name="L40S", major=major, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 10**9, 48 * 10**9))
    found = list(doctor._card(torch.device("cuda")))
    assert [one.state for one in found] == states
    assert found[0].said == f"L40S, capability {major}.9, 48.0 GB, {free}.0 GB free"


def test_packages_that_are_absent_old_or_broken(monkeypatch):
    from packaging.specifiers import SpecifierSet

    assert doctor._package("no_such_thing", None).state == "problem"
    old = doctor._package("numpy", SpecifierSet(">=99"))
    assert (old.state, old.remedy) == ("problem", "pip install 'numpy>=99'")
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: 1 / 0)
    broken = doctor._package("numpy", None)
    assert broken.state == "problem"
    assert "ZeroDivisionError" in broken.said


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert doctor.disk("output folder", tmp_path / "file").state == "problem"
    assert doctor.disk("output folder", tmp_path / "new" / "deeper").state in ("ok", "warning")
    for free, state in ((10**8, "problem"), (5 * 10**9, "warning"), (10**11, "ok")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert doctor.disk("output folder", tmp_path).state == state


def test_models_in_the_hub_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--nobody--fake" / "snapshots" / "abc"
    (snapshot / "transformer").mkdir(parents=True)
    (snapshot / "transformer" / "weights").write_bytes(bytes(10**6))
    (tmp_path / "models--nobody--fake" / "refs").mkdir()
    (tmp_path / "models--nobody--fake" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    shelves = Kit(discover=False, plugins={"fake": FakePlugin()}).shelves
    found = by_subject(doctor.hub(shelves))
    assert found["hub models"].said.startswith("1 download, 0.0 GB")
    assert found["fake small"].state == "warning"
    assert "without vae" in found["fake small"].said
    (snapshot / "vae").mkdir()
    (snapshot / "vae" / "weights").write_bytes(b"x")
    assert by_subject(doctor.hub(shelves))["fake small"].state == "ok"
    assert "fake large" not in found
    assert issubclass(type(shelves.families["fake"]), Family)


def test_little_memory_is_a_warning(monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * 10**9, available=50 * 10**9))
    monkeypatch.setattr(doctor, "_container", lambda: None)
    assert [(one.state, one.said) for one in doctor.memory()] == [("ok", "64.0 GB, 50.0 GB free")]
    monkeypatch.setattr(doctor, "_container", lambda: 4 * 10**9)
    (one,) = doctor.memory()
    assert (one.state, one.said) == ("warning", "4.0 GB, 4.0 GB free (a limit of the container)")

"""Two runs in one process are as each alone, and the library leaves no trace outside its folders."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lorakit.engine.sharing import PROCESS, Sharing, loading
from lorakit.events import RunFinished, UpdateFinished

FIRST = {
    "train": {"updates": 4, "caption_dropout": 0.4, "precision": "fp32"},
    "lora": {"dropout": 0.3},
    "sampling": {"prompts": ["a moon"], "every": 2, "strengths": []},
}
SECOND = {
    "train": {"updates": 4, "accumulation": 2, "precision": "bf16"},
    "lora": {"dropout": 0.2},
    "sampling": {"prompts": [], "every": 0},
    "validation": {"every": 2, "pictures": 1},
    "quantization": {"name": "int8"},
    "optimizer": {"name": "adamw8bit"},
    "save": {"dtype": "bf16"},
    "seed": 3,
}


def told(plan, events) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses = [one.loss for one in events if isinstance(one, UpdateFinished)]
    return losses, safetensors.torch.load_file(plan.folder / f"{plan.settings.name}.safetensors")


@pytest.fixture(scope="module")
def known():
    return []


@pytest.fixture
def wanted(kit, make_plan, known):
    """What each of the two gives alone."""
    if not known:
        alone = [make_plan(name=f"alone{number}", **options) for number, options in enumerate((FIRST, SECOND))]
        known += [told(plan, list(kit.train(plan))) for plan in alone]
    return known


def test_two_runs_in_two_threads_are_each_as_alone(kit, make_plan, wanted):
    together = [make_plan(name=f"both{number}", **options) for number, options in enumerate((FIRST, SECOND))]
    found: dict[int, list] = {}

    def train(number):
        events = []
        for event in kit.train(together[number]):
            events.append(event)
            if isinstance(event, UpdateFinished) and event.update <= 2:
                meeting.wait(timeout=120)  # so that they train at the same time
        found[number] = events

    meeting = threading.Barrier(2)
    threads = [threading.Thread(target=train, args=(number,)) for number in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for number, (losses, held) in enumerate(wanted):
        assert isinstance(found[number][-1], RunFinished)
        got_losses, got = told(together[number], found[number])
        assert got_losses == losses
        assert [name for name in held if not torch.equal(got[name], held[name])] == []


def test_two_runs_in_turns_are_each_as_alone(kit, make_plan, wanted):
    """One thread reads both, event by event."""
    together = [make_plan(name=f"both{number}", **options) for number, options in enumerate((FIRST, SECOND))]
    events: list[list] = [[], []]
    streams = [kit.train(plan) for plan in together]
    while streams != [None, None]:
        for number, stream in enumerate(streams):
            if stream is not None:
                event = next(stream, None)
                events[number].append(event)
                streams[number] = stream if event is not None else None
    for number, (losses, held) in enumerate(wanted):
        got_losses, got = told(together[number], events[number])
        assert got_losses == losses
        assert all(torch.equal(got[name], held[name]) for name in held)


# -- sharing -------------------------------------------------------------------------------------------------------


def test_whoever_is_alone_waits_for_others_and_lets_nobody_in():
    sharing, order, inside = Sharing(), [], threading.Event()
    leave, asks = threading.Event(), threading.Event()

    def beside():
        with sharing.shared(), sharing.shared():
            inside.set()
            leave.wait()
            order.append("beside leaves")

    def alone():
        inside.wait()
        with sharing.shared():  # it may not wait for itself
            asks.set()
            with sharing.alone(), sharing.alone(), sharing.shared():
                order.append("alone")

    threads = [threading.Thread(target=one) for one in (beside, alone)]
    for one in threads:
        one.start()
    asks.wait()
    assert order == []
    leave.set()
    for one in threads:
        one.join()
    assert order == ["beside leaves", "alone"]
    with sharing.shared():
        pass  # nobody is left inside


def test_many_threads_never_meet_one_that_is_alone():
    sharing, state, wrong = Sharing(), {"beside": 0, "alone": 0}, []
    lock = threading.Lock()

    def count(name, change):
        with lock:
            state[name] += change
            if state["alone"] > 1 or (state["alone"] and state["beside"]):
                wrong.append(dict(state))

    def work(number):
        chance = random.Random(number)
        for _ in range(200):
            if chance.random() < 0.3:
                with sharing.alone():
                    count("alone", 1)
                    count("alone", -1)
                continue
            with sharing.shared():
                count("beside", 1)
                count("beside", -1)
                if chance.random() < 0.3:
                    with sharing.alone():
                        count("alone", 1)
                        count("alone", -1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_loading_leaves_no_trace_even_when_it_fails():
    before = torch.get_default_dtype(), torch.get_rng_state()

    def fail():
        with loading():
            torch.set_default_dtype(torch.float64)
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_default_dtype() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    with PROCESS.shared():
        pass


# -- traces --------------------------------------------------------------------------------------------------------

KNOWN = {"PYTEST_CURRENT_TEST"}


def world() -> dict[str, object]:
    """What a process shares."""
    numbers = [one for one in signal.valid_signals() if one not in (signal.SIGKILL, signal.SIGSTOP)]
    root = logging.getLogger()
    return {
        "signals": {one: signal.getsignal(one) for one in numbers},
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "random": torch.get_rng_state().tolist(),
        "python random": random.getstate(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "environment": {name: value for name, value in os.environ.items() if name not in KNOWN},
        "folder": Path.cwd(),
        "logging": (root.level, list(root.handlers), logging.root.manager.disable),
        "warnings": list(warnings.filters),
        "excepthook": sys.excepthook,
        "stdout": (sys.stdout, sys.stderr),
        "threads alive": sorted(one.name for one in threading.enumerate()),
    }


def test_a_run_prints_nothing_and_leaves_the_process_as_it_was(kit, make_plan, capfd):
    plan = make_plan(
        train={"updates": 2, "precision": "bf16"},
        lora={"dropout": 0.1},
        sampling={"prompts": ["a moon"], "every": 1, "strengths": [0, 1]},
        validation={"every": 1, "pictures": 1},
        save={"every": 1, "dtype": "bf16"},
    )
    capfd.readouterr()
    before = world()
    inside = []
    kinds = []
    for event in kit.train(plan):
        kinds.append(type(event))
        now = world()
        inside += [name for name in before if name != "threads alive" and now[name] != before[name]]
    assert kinds[-1] is RunFinished
    assert inside == []
    assert world() == before
    assert capfd.readouterr() == ("", "")


SCRIPT = """
import os, signal, sys, logging, warnings, random
environment = dict(os.environ)
handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
import bitsandbytes, diffusers, peft, torch, transformers
filters = list(warnings.filters)  # libraries that are imported add their own
from lorakit import Kit
kit = Kit()
plan = kit.plan({"family": "qwen", "preset": "toy", "trigger": "sks", "data": [{"folder": "pictures"}],
    "train": {"updates": 1}, "sampling": {"every": 0, "strengths": []}})
list(kit.train(plan))
assert dict(os.environ) == environment, set(os.environ.items()) ^ set(environment.items())
assert handlers == {one: signal.getsignal(one) for one in handlers}
assert logging.getLogger().handlers == [] and logging.getLogger().level == logging.WARNING
new = [one for one in warnings.filters if one not in filters]
assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
assert not new, new
"""


def test_a_fresh_process_prints_nothing_either(tmp_path, pictures):
    """With the imports of every library, which have their own ideas of what to say and set."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], cwd=pictures.parent, capture_output=True, text=True)
    assert ran.stderr == ""
    assert ran.stdout == ""
    assert ran.returncode == 0

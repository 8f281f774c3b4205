"""Who multiplies int8: the kernels equal the plain way, compile for cards, and give way where they fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import lorakit.engine
from lorakit import Kit
from lorakit.engine import int8_products, loading, trials
from lorakit.engine.int8_fast import Int8Fast
from lorakit.engine.int8_products import TORCH, Triton, choose
from lorakit.errors import ConfigError
from lorakit.events import PhaseFinished, UpdateFinished, Warned
from tests.engine.quantized import context_of, drained, make_plan, write_scenes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CARDS = (80, 89, 90, 100, 120)  # A100; 4090 and L40S; H100; B200; 5090
NO_TRITON = "triton is not installed; it comes with the extra `test` on Linux"


# -- the kernels ---------------------------------------------------------------------------------------------------


def test_interpreted_kernels_answer_as_the_plain_way():
    pytest.importorskip("triton", reason=NO_TRITON)
    file = Path(__file__).with_name("int8_interpreted.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        cwd=file.parents[2],
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


def compiled(kernel, card, signature, constants, **options):
    """The code of a kernel for a card that need not be here, as PTX; sides are multiples of 16, as models have them."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    names = kernel.arg_names
    kinds = {name: "constexpr" if name in constants else signature.get(name, "i32") for name in names}
    even = [["tt.divisibility", 16]]
    attributes = {(names.index(name),): even for name, kind in kinds.items() if kind != "constexpr" and name != "count"}
    source = ASTSource(
        fn=kernel,
        signature=kinds,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )
    made = compile(source, target=GPUTarget("cuda", card, 32), options=options)
    assert made.asm["cubin"], "the assembler made nothing of it"
    return made.asm["ptx"], made.metadata


POINTERS = {"codes": "*i8", "weight": "*i8", "answer": "*bf16", "sizes": "*fp32", "scale": "*fp32", "bias": "*bf16"}


def compile_product(card, tiles, orientation):
    from lorakit.engine import int8_triton

    constants = {"scaled": True, "biased": True, orientation: 1, **tiles.kwargs}
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    return compiled(int8_triton._multiply.fn, card, POINTERS, constants, **options)


@pytest.fixture
def triton_cache(tmp_path, monkeypatch):
    pytest.importorskip("triton", reason=NO_TRITON)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("orientation", ["weight_inner", "weight_outputs"])
def test_products_compile_for_cards_that_are_not_here(triton_cache, card, orientation):
    """What the interpreter cannot show: a kernel may run there and not compile."""
    from lorakit.engine import int8_triton

    code, about = compile_product(card, int8_triton._multiply.configs[0], orientation)
    assert ".s32.s8" in code or "wgmma" in code, "it does not multiply on the integer units"
    assert "cvt.rn.bf16" in code, "answers are cut off instead of rounded"
    assert about.shared <= (99 if card in (89, 120) else 163) * 1024


@pytest.mark.thorough
@pytest.mark.parametrize("card", CARDS)
def test_every_size_of_blocks_compiles(triton_cache, card):
    from lorakit.engine import int8_triton

    for tiles in int8_triton._multiply.configs:
        for orientation in ("weight_inner", "weight_outputs"):
            compile_product(card, tiles, orientation)


@pytest.mark.parametrize("rows", ["*fp32", "*bf16", "*fp16"])
@pytest.mark.parametrize("scaled", [False, True])
def test_rounding_compiles_to_divisions_that_round(triton_cache, rows, scaled):
    """A quick division would give other codes than the plain way."""
    from lorakit.engine import int8_triton

    pointers = {"rows": rows, "columns": "*fp32", "codes": "*i8", "sizes": "*fp32"}
    constants = {"largest": 127, "least": 1e-12, "scaled": scaled, "block": 4096} | (
        {} if scaled else {"columns": None}
    )
    code, _ = compiled(int8_triton._round_row, 90, pointers, constants, num_warps=8)
    assert "div.rn.f32" in code
    assert "div.full" not in code
    assert "4B400000" in code, "the number that rounds to even was optimized away"


# -- who is chosen -------------------------------------------------------------------------------------------------


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Int8Fast().convert(nn.Linear(32, 24).requires_grad_(False), CPU)


@pytest.fixture
def card(monkeypatch):
    """A CUDA device that only its capability is asked of."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def messages(products):
    return [one.message for one in products.news()]


def test_layers_on_a_card_are_multiplied_by_the_kernels(layer, card):
    pytest.importorskip("triton", reason=NO_TRITON)
    products = choose([nn.ModuleList([layer])], CUDA)
    assert layer.products is products
    assert products.name == "triton"
    assert messages(products) == []


def test_elsewhere_and_without_such_layers_nothing_is_chosen(layer, card):
    assert choose([layer], CPU) is None
    assert layer.products is TORCH
    assert choose([nn.Linear(8, 8)], CUDA) is None


@pytest.mark.parametrize(
    ("what", "told"),
    [("absent", "not installed"), ("old", "8.0 or newer"), ("broken", "cannot be imported (ModuleNotFoundError")],
)
def test_where_the_kernels_cannot_run_torch_multiplies_and_one_warning_says_why(layer, card, monkeypatch, what, told):
    if what == "absent":
        monkeypatch.setattr(int8_products.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(int8_products.importlib.util, "find_spec", lambda name: SimpleNamespace())
    if what == "old":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    if what == "broken":
        monkeypatch.delattr(lorakit.engine, "int8_triton", raising=False)
        monkeypatch.setitem(sys.modules, "lorakit.engine.int8_triton", None)
    products = choose([layer], CUDA)
    assert products.name == "torch._int_mm"
    (message,) = messages(products)
    assert told in message
    assert messages(products) == []
    x = torch.randn(20, 32)
    answer = layer(x)
    layer.products = TORCH
    assert torch.equal(layer(x), answer)


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def kernels(rounded, product=None):
    made = ModuleType("kernels")
    made.rounded, made.product = rounded, product or failing(RuntimeError("PassManager::run failed"))
    return made


@pytest.mark.parametrize("which", ["rounded", "product"])
def test_kernels_that_fail_on_the_way_give_way_to_torch_once_and_for_all(layer, which):
    error = RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")
    layer.products = Triton(kernels(failing(error) if which == "rounded" else TORCH.rounded, failing(error)))
    x = torch.randn(20, 32).requires_grad_()
    answer = layer(x)
    answer.sum().backward()
    assert layer.products.name == "torch._int_mm"
    (message,) = messages(layer.products)
    assert "RuntimeError: Failed to find C compiler" in message
    assert "\n" not in message
    layer.products = TORCH
    other = x.detach().clone().requires_grad_()
    again = layer(other)
    again.sum().backward()
    assert torch.equal(answer, again)
    assert torch.equal(x.grad, other.grad)


def test_the_real_kernels_give_way_on_a_tensor_that_is_on_no_card(layer, triton_cache):
    from lorakit.engine import int8_triton

    layer.products = Triton(int8_triton)
    x = torch.randn(20, 32)
    answer = layer(x)
    (message,) = messages(layer.products)
    assert message.startswith("triton's kernels fail (")
    layer.products = TORCH
    assert torch.equal(layer(x), answer)


def test_memory_that_runs_out_is_no_failure_of_a_kernel(layer):
    layer.products = Triton(kernels(failing(torch.OutOfMemoryError("CUDA out of memory"))))
    with pytest.raises(torch.OutOfMemoryError):
        layer(torch.randn(20, 32))
    assert layer.products.name == "triton"


def test_a_run_whose_kernels_fail_goes_on_and_warns_once(tmp_path, monkeypatch):
    def chosen(blocks, device):
        products = Triton(kernels(TORCH.rounded))
        for layer in (one for block in blocks for one in block.modules() if isinstance(one, int8_products.Multiplying)):
            layer.products = products
        return products

    monkeypatch.setattr(int8_products, "choose", chosen)
    plan = make_plan(
        tmp_path / "runs",
        write_scenes(tmp_path / "pictures", 2, 1),
        model={"device": "auto"},
        quantization={"name": "int8-fast"},
        train={"updates": 2},
    )
    assert plan.settings.speed.products == "triton"
    events = list(Kit().train(plan))
    assert len([one for one in events if isinstance(one, Warned) and "PassManager" in one.message]) == 1
    (note,) = (one.note for one in events if isinstance(one, PhaseFinished) and one.phase == "calibrate")
    assert note.endswith("multiplied by torch._int_mm")
    assert len([one for one in events if isinstance(one, UpdateFinished)]) == 2


def test_nobody_is_asked_where_the_plan_says_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(int8_products, "choose", failing(AssertionError("asked all the same")))
    plan = make_plan(tmp_path / "runs", quantization={"name": "int8-fast"}, speed={"products": "torch"})
    assert drained(loading.load_base(context_of(plan))).products is None


# -- the plan ------------------------------------------------------------------------------------------------------


def planned(tmp_path, device="auto", **speed):
    return make_plan(tmp_path, model={"device": device}, quantization={"name": "int8-fast"}, speed=speed)


def test_the_plan_says_who_multiplies_and_why(tmp_path):
    choices = planned(tmp_path).choices["speed.products"], planned(tmp_path, "cpu").choices["speed.products"]
    assert [one.value for one in choices] == ["triton", "torch"]
    assert "model.device = 'cpu'" in choices[1].because
    compiled = planned(tmp_path, compile="blocks").choices["speed.products"]
    assert (compiled.value, "compiling" in compiled.because) == ("torch", True)
    assert planned(tmp_path, products="torch").settings.speed.products == "torch"
    assert make_plan(tmp_path).settings.speed.products is None


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"model": {"device": "cpu"}}, "for CUDA"),
        ({"speed": {"compile": "blocks"}}, "compiling"),
        ({"quantization": {"name": "int8"}}, "no kernels of its own"),
    ],
)
def test_triton_is_refused_where_it_cannot_multiply(tmp_path, tables, why):
    asked = {"model": {"device": "auto"}, "quantization": {"name": "int8-fast"}, **tables}
    asked["speed"] = {**tables.get("speed", {}), "products": "triton"}
    with pytest.raises(ConfigError, match=r"speed\.products = 'triton' would have no effect") as caught:
        make_plan(tmp_path, **asked)
    assert why in caught.value.why


def test_a_run_that_was_planned_before_there_was_a_choice_goes_on_with_torch(tmp_path):
    plan = make_plan(tmp_path, model={"device": "auto"}, quantization={"name": "int8-fast"})
    table = plan.model_dump(mode="json")
    del table["settings"]["speed"]["products"]
    assert type(plan).model_validate(table).settings.speed.products == "torch"


# -- lorakit doctor ------------------------------------------------------------------------------------------------


def examined(device):
    return {one.subject: one for one in trials.quantizers(Kit().shelves, device)}["quantizer int8-fast"]


def test_doctor_says_who_multiplies(monkeypatch):
    assert examined(CPU).said.endswith("multiplied by torch._int_mm")

    def chosen(modules, device, product):
        modules[0].products = Triton(kernels(TORCH.rounded, product))
        return modules[0].products

    monkeypatch.setattr(int8_products, "choose", lambda modules, device: chosen(modules, device, TORCH.product))
    assert examined(CPU).said.endswith("multiplied by triton")
    monkeypatch.setattr(int8_products, "choose", lambda modules, device: chosen(modules, device, None))
    found = examined(CPU)
    assert found.state == "warning"
    assert "multiplied by torch._int_mm: triton's kernels fail (RuntimeError: PassManager" in found.said
    assert "gcc" in found.remedy

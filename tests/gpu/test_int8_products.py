"""The kernels of int8 on a card: the plain way's codes, and its answers to rounding; skipped where there is none."""

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
CUDA = torch.device("cuda")
FORMATS = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(17, 8, 8), (64, 3072, 3072), (4160, 3072, 12288), (4097, 12288, 3072), (333, 1000, 120)]
UNIT = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def layers(inputs, outputs, bias, dtype):
    """The same layer twice: multiplied by torch, and by the kernels."""
    from lorakit.engine.int8_fast import Int8Fast
    from lorakit.engine.int8_products import choose

    torch.manual_seed(0)
    linear = torch.nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)
    plain, fused = (Int8Fast().convert(linear, CUDA) for _ in range(2))
    assert choose([fused], CUDA) is not None
    return plain, fused


def both_ways(layer, x, grad):
    x = x.clone().requires_grad_()
    answer = layer(x)
    answer.backward(grad)
    return answer.detach(), x.grad


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("scaled", [False, True])
def test_codes_are_those_of_a_cpu(dtype, scaled):
    """Of a CPU, for torch on CUDA divides by 127 as a product with its reciprocal."""
    from lorakit.engine import int8_triton
    from lorakit.engine.int8_products import TORCH

    rows = torch.randn(65, 12288).to(dtype)
    rows[3] = 0
    columns = torch.rand(12288) if scaled else None
    found = int8_triton.rounded(rows.to(CUDA), None if columns is None else columns.to(CUDA))
    for one, other in zip(found, TORCH.rounded(rows, columns), strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_layers_answer_and_pass_gradients_as_plain_ones(dtype, rows, inputs, outputs, bias):
    plain, fused = layers(inputs, outputs, bias, dtype)
    x, grad = (torch.randn(rows, width, device=CUDA, dtype=dtype) for width in (inputs, outputs))
    for one, other in zip(both_ways(fused, x, grad), both_ways(plain, x, grad), strict=True):
        apart = (one.float() - other.float()).norm() / other.float().norm()
        assert apart < 1e-3 + UNIT[dtype]  # a code that is one off here and there, by a quotient's last place
    assert fused.products.name == "triton", fused.products.failure


def test_products_are_exact_but_for_one_rounding():
    from lorakit.engine import int8_triton

    draws = torch.Generator().manual_seed(0)
    codes, weight = (
        torch.randint(-127, 128, shape, dtype=torch.int8, generator=draws) for shape in ((75, 200), (90, 200))
    )
    sizes, scale = torch.rand(75, 1, generator=draws), torch.rand(90, generator=draws)
    for turned in (weight.T, weight.T.contiguous()):
        found = int8_triton.product(codes.to(CUDA), sizes.to(CUDA), turned.to(CUDA), torch.float32, scale.to(CUDA))
        wanted = (codes.long() @ turned.long()).float() * sizes * scale
        assert torch.equal(found.cpu(), wanted)


def test_a_run_says_that_triton_multiplied(tmp_path):
    from pathlib import Path

    from lorakit import Kit
    from lorakit.events import PhaseFinished, RunFinished

    pictures = Path(__file__).parents[2] / "docs" / "examples" / "pictures"
    plan = Kit().plan(
        {
            "family": "qwen",
            "preset": "toy",
            "output": str(tmp_path),
            "data": [{"folder": str(pictures)}],
            "model": {"device": "cuda"},
            "train": {"updates": 4, "precision": "bf16"},
            "quantization": {"name": "int8-fast"},
        }
    )
    events = list(Kit().train(plan))
    (note,) = (one.note for one in events if isinstance(one, PhaseFinished) and one.phase == "calibrate")
    assert note.endswith("multiplied by triton")
    assert isinstance(events[-1], RunFinished)

"""The fastest attention kernel for the run's own shapes is found once, kept, preferred and told."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lorakit.engine import attention, faster
from lorakit.engine.attention import Form, choose, preferred, seen
from lorakit.errors import ConfigError
from lorakit.events import PhaseFinished, UpdateFinished
from lorakit.order import Turn

CUDA = torch.device("cuda")
SMALL = Form((1, 2, 8, 16), (1, 2, 8, 16), torch.bfloat16, False)
LARGE = Form((1, 2, 64, 16), (1, 2, 70, 16), torch.bfloat16, False)


def clock(asked):
    """cuDNN is fast, flash is slow, and the third takes no such call."""

    def seconds(kernel, form, device):
        asked.append((kernel, form))
        if kernel == "EFFICIENT_ATTENTION":
            raise RuntimeError("No available kernel")
        return {"FLASH_ATTENTION": 2e-3, "CUDNN_ATTENTION": 1e-3}[kernel]

    return seconds


def test_kernels_are_timed_once_for_a_device_and_a_form(tmp_path):
    asked, file = [], tmp_path / "attention.json"
    chosen = choose({SMALL, LARGE}, CUDA, "H100", file, clock(asked))
    assert chosen.kernel == "CUDNN_ATTENTION"
    assert str(chosen) == "flash 2 ms, cudnn 1 ms (1x2x64x16 to 70 tokens, bfloat16)"
    assert asked == [(kernel, LARGE) for kernel in attention.KERNELS]
    assert choose({LARGE}, CUDA, "H100", file, clock(asked)) == chosen
    assert len(asked) == 3
    choose({LARGE}, CUDA, "A100", file, clock(asked))
    choose({SMALL}, CUDA, "H100", file, clock(asked))
    assert len(asked) == 9


def test_a_torn_file_is_timed_again(tmp_path):
    (file := tmp_path / "attention.json").write_text('{"H100')
    assert choose({SMALL}, CUDA, "H100", file, clock([])).kernel == "CUDNN_ATTENTION"


def test_where_no_kernel_takes_it_torch_chooses(tmp_path):
    def seconds(*given):
        raise RuntimeError("No available kernel")

    chosen = choose({SMALL}, CUDA, "V100", tmp_path / "attention.json", seconds)
    assert (chosen.kernel, choose(set(), CUDA, "V100", tmp_path / "other.json")) == ("", None)
    assert str(chosen).startswith("torch chooses")
    with preferred(chosen), preferred(None):
        pass


def test_preferring_a_kernel_changes_no_answer_on_a_cpu_and_ends(tmp_path):
    chosen = choose({SMALL}, CUDA, "H100", tmp_path / "attention.json", clock([]))
    q = torch.randn(1, 2, 8, 16)
    before, order = scaled_dot_product_attention(q, q, q), torch._C._get_sdp_priority_order()
    with preferred(chosen):
        assert torch.equal(scaled_dot_product_attention(q, q, q), before)
        assert torch._C._get_sdp_priority_order()[0] == int(torch.nn.attention.SDPBackend.CUDNN_ATTENTION)
    assert torch._C._get_sdp_priority_order() == order


@pytest.mark.parametrize(("batch", "masked"), [((0,), False), ((0, 4), True), ((0, 0), False)])
def test_the_forms_are_those_of_a_batch_and_a_mask_is_where_texts_differ_only(
    make_plan, make_trainer, samples, batch, masked
):
    trainer = make_trainer(make_plan())
    forms = seen(lambda: trainer.pass_through(Turn(batch, 0, 0), samples))
    longest = max(samples(number).text.lengths[0] for number in batch)
    assert {(form.queries[0], form.keys[2], form.masked) for form in forms} == {(len(batch), 16 + longest, masked)}
    assert not trainer.adapter.grad.any()


def test_a_run_tells_the_kernel_and_trains_the_same(kit, make_plan, monkeypatch, of_kind):
    plan = make_plan(train={"updates": 2})
    wanted = list(kit.train(plan.with_settings(name="plain")))
    begin = faster.Faster.begin

    def as_on_a_gpu(self, trainer, samples):
        yield from self._choose_attention(trainer, samples)
        yield from begin(self, trainer, samples)

    monkeypatch.setattr(faster.Faster, "begin", as_on_a_gpu)
    monkeypatch.setattr(attention.choose, "__defaults__", (clock([]),))
    events = list(kit.train(plan))
    (note,) = (one.note for one in of_kind(events, PhaseFinished) if one.phase == "attention")
    assert note.startswith("flash 2 ms, cudnn 1 ms (1x4x")
    losses = [[one.loss for one in of_kind(some, UpdateFinished)] for some in (events, wanted)]
    assert losses[0] == losses[1]


def test_the_plan_refuses_what_does_nothing(make_plan):
    assert make_plan(model={"device": "cpu"}).settings.speed.attention == "torch"
    assert make_plan().settings.speed.attention == "timed"
    with pytest.raises(ConfigError, match=r"speed\.attention = 'timed' would have no effect.*CUDA"):
        make_plan(model={"device": "cpu"}, speed={"attention": "timed"})

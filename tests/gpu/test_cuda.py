"""What only a GPU can show; skipped where there is none."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
PICTURES = Path(__file__).parents[2] / "docs" / "examples" / "pictures"


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_run_on_cuda_in_bf16(tmp_path, quantization):
    from lorakit import Kit
    from lorakit.events import RunFinished, UpdateFinished

    kit = Kit()
    plan = kit.plan(
        {
            "family": "qwen",
            "preset": "toy",
            "output": str(tmp_path),
            "data": [{"folder": str(PICTURES)}],
            "model": {"device": "cuda"},
            "optimizer": {"name": "adamw8bit"},
            "train": {"updates": 20, "precision": "bf16", "gradient_checkpointing": True},
            "quantization": {"name": quantization},
        }
    )
    events = list(kit.train(plan))
    losses = [event.loss for event in events if isinstance(event, UpdateFinished)]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])
    assert isinstance(events[-1], RunFinished)
    assert "scale 1.000" in events[-1].proof


def test_a_steady_update_does_not_wait_for_the_device(tmp_path, monkeypatch):
    from lorakit import Kit
    from lorakit.engine.loop import Trainer

    start = Trainer.start

    def watched(self, *given):
        steady = self.updates >= 4
        torch.cuda.set_sync_debug_mode("error" if steady else "default")
        try:
            start(self, *given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "start", watched)
    kit = Kit()
    plan = kit.plan(
        {
            "family": "qwen",
            "preset": "toy",
            "output": str(tmp_path),
            "data": [{"folder": str(PICTURES)}],
            "model": {"device": "cuda"},
            "optimizer": {"name": "adamw"},
            "train": {"updates": 10, "precision": "bf16"},
        }
    )
    assert plan.settings.speed.losses == "late"
    list(kit.train(plan))


@pytest.mark.parametrize(("precision", "off"), [("fp32", 1e-4), ("bf16", 2e-2)])
@pytest.mark.parametrize("family", ["sdxl", "qwen", "flux"])
def test_passes_captured_as_graphs_learn_as_plain_ones_and_wait_for_nothing(
    tmp_path, monkeypatch, family, precision, off
):
    from tests.pictures import picture

    from lorakit import Kit
    from lorakit.engine import checkpoint
    from lorakit.engine.loop import Trainer
    from lorakit.events import PassCaptured, UpdateFinished, Warned

    start, waited = Trainer.start, []

    def watched(self, *given):
        steady = self.graphs is not None and self.graphs.captured > 0 and self.updates >= 6
        waited.append(steady)
        torch.cuda.set_sync_debug_mode("error" if steady else "default")
        try:
            start(self, *given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "start", watched)
    for number in range(3):
        picture(tmp_path / "pictures" / f"{number}.png", (64, 64), colour=(80 * number, 90, 200), caption="a thing")
    kit, found = Kit(), {}
    for graphs in ("off", "on"):
        plan = kit.plan(
            {
                "family": family,
                "preset": "toy",
                "name": graphs,
                "output": str(tmp_path),
                "data": [{"folder": str(tmp_path / "pictures")}],
                "model": {"device": "cuda"},
                "optimizer": {"name": "adamw"},
                "train": {"updates": 12, "precision": precision, "batch_size": 1, "caption_dropout": 0},
                "sampling": {"every": 0, "strengths": []},
                "validation": {"every": 0},
                "save": {"every": 12},
                "quantization": {"name": "none"},
                "speed": {"graphs": graphs, "attention": "torch", "recompute": "all"},
            }
        )
        events = list(kit.train(plan))
        losses = [event.loss for event in events if isinstance(event, UpdateFinished)]
        adapter = checkpoint.load(plan.folder, 12, torch.device("cpu")).adapter
        captured = [event for event in events if isinstance(event, PassCaptured)]
        assert bool(captured) == (graphs == "on"), [event for event in events if isinstance(event, Warned)]
        found[graphs] = (torch.tensor(losses), adapter)
    assert any(waited)
    assert torch.allclose(found["on"][0], found["off"][0], rtol=off)
    assert (found["on"][1] - found["off"][1]).norm() < 10 * off * found["off"][1].norm()


def test_every_pass_of_a_graph_adds_the_gradient_of_what_it_is_given():
    """The recorder by itself: three forms in one pool, in turn, against the same work done plainly."""
    from lorakit.engine.graphs import Graphs, recorder_for
    from lorakit.engine.parts import Batch, Text
    from lorakit.engine.preparing import Given

    device = torch.device("cuda")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 16)).to(device)

    def compute(one):
        error = (model(one.noisy + one.t[:, None, None, None]) - one.target) ** 2
        losses = error.flatten(1).mean(1) * one.weight
        losses.backward(one.share)
        return losses.detach()

    def given(pictures):
        noisy, target = torch.randn(2, pictures, 2, 3, 16, device=device)
        t, weight, share = torch.rand(3, pictures, device=device)
        text = Text(torch.zeros(pictures, 2, 4, device=device), (2,) * pictures)
        return Given(noisy, t, Batch(text), target, weight, share)

    recorder = recorder_for(device)
    assert recorder
    graphs = Graphs(compute, recorder, device)
    passes = [given(number % 3 + 1) for number in range(24)]
    found = []
    for way in (compute, graphs.passed):
        for one in model.parameters():
            one.grad = torch.zeros_like(one)
        losses = torch.cat([way(one) for one in passes])
        found.append((losses, torch.cat([one.grad.flatten() for one in model.parameters()])))
    assert graphs.captured == 3
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in zip(*found, strict=True))

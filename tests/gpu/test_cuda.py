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

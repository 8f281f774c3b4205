"""What `make demo` promises: a concept is learned, the more the stronger, and what was known stays."""

from pathlib import Path

import pytest
import tomli

from lorakit import Kit, evidence, history
from lorakit.events import CheckpointSaved, PreviewDrawn, RunFinished, SheetDrawn
from lorakit.testing import shapes
from lorakit.testing.examples import CONCEPT_CAPTION, concept_score

ROOT = Path(__file__).parents[1]
NEGATIVE, GUIDANCE, STEPS = " ", 3.0, 20


def drawn(pipeline, captions, seed, scale=None):
    import torch

    options = {} if scale is None else {"attention_kwargs": {"scale": scale}}
    return pipeline(
        captions,
        negative_prompt=[NEGATIVE] * len(captions),
        true_cfg_scale=GUIDANCE,
        width=shapes.SIDE,
        height=shapes.SIDE,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(seed),
        **options,
    ).images


def judge_the_recommendation(folder):
    """A run that is long enough: what is recommended learned most of what there is, and nothing is overfitting."""
    found = history.read(folder)
    made = evidence.recommend(evidence.candidates(found, evidence.judged(found)))
    losses = {one.update: one.loss for one in found.validations}
    assert made.first.within
    assert losses[made.first.candidate.update] < losses[0] / 2
    assert made.rise is None
    assert not made.dropped
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"Recommended: update {made.first.candidate.update}" in page
    assert "Overfitting" not in page


@pytest.mark.slow
def test_the_demo(tmp_path, monkeypatch):
    """The demo's own configuration, its file loaded by an unmodified diffusers pipeline, and judged."""
    import torch
    from diffusers import QwenImagePipeline

    from lorakit_qwen.family import TOY

    torch.set_num_threads(1)
    monkeypatch.chdir(ROOT)
    table = tomli.loads((ROOT / "docs/examples/demo.toml").read_text())
    kit = Kit()
    plan = kit.plan({**table, "output": str(tmp_path)})
    assert not plan.errors
    events = list(kit.train(plan))
    finished = events[-1]
    assert isinstance(finished, RunFinished)
    assert "scale 1.000" in finished.proof
    for kind in (CheckpointSaved, PreviewDrawn, SheetDrawn):
        assert any(isinstance(event, kind) for event in events)
    judge_the_recommendation(Path(finished.folder))

    pipeline = QwenImagePipeline.from_pretrained(TOY, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    scenes = shapes.plain_scenes()
    captions = [scene.caption for scene in scenes]
    before = drawn(pipeline, [CONCEPT_CAPTION] * 6, seed=5)
    known_before = shapes.accuracy(drawn(pipeline, captions, seed=3), scenes)
    file = Path(finished.lora)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    half = drawn(pipeline, [CONCEPT_CAPTION] * 6, seed=5, scale=0.5)
    full = drawn(pipeline, [CONCEPT_CAPTION] * 6, seed=5)
    known_after = shapes.accuracy(drawn(pipeline, captions, seed=3), scenes)

    scores = [sum(map(concept_score, pictures)) / 6 for pictures in (before, half, full)]
    print(f"concept without, half, full: {scores}; known captions {known_before:.2f} -> {known_after:.2f}")
    assert scores[0] < 0.3
    assert scores[0] + 0.05 < scores[1] < scores[2] - 0.05
    assert scores[2] > 0.5
    assert known_after >= 0.7 * known_before

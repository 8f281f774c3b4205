"""Runs as their folders tell them, made by hand: checkpoints, validations and previews of a known course."""

from __future__ import annotations

from pathlib import Path

from lorakit import Kit
from lorakit.events import CheckpointSaved, PreviewDrawn, RunFinished, UpdateFinished, Validated

PICTURES = 8  # held out


def validated(update, loss=0.3, *, error=0.02, trigger=0.05, trigger_error=0.01, drift=0.1, norm=0.1, apart=()):
    """A validation; `apart` are the differences of its pictures from the mean, where each is told of."""
    held = loss is not None
    return Validated(
        update=update, loss=loss, loss_error=error if held else None, train_loss=0.2, train_error=0.01,
        gap=loss - 0.2 if held else None, levels=(0.5,), loss_by_level=(loss,) if held else (), train_by_level=(0.2,),
        trigger=trigger, trigger_error=trigger_error, drift=drift, norm=norm, largest_norm=norm, largest_layer="x",
        seconds=1.0, loss_by_picture=tuple(loss + one for one in apart) if held else (),
    )  # fmt: skip


def tell(pictures: Path, output: Path, validations, *, name="story", previews=None, finished=True, checkpoints=None):
    """A run's folder with a checkpoint for each validation after the first update, or for those that are named.

    `previews` has a picture for each update that drew one, by prompt.
    """
    updates = max((one.update for one in validations), default=100)
    drawn = previews or {}
    prompts = list(dict.fromkeys(prompt for told in drawn.values() for prompt, _ in told)) or ["a cat"]
    plan = Kit().plan(
        {
            "family": "qwen",
            "preset": "toy",
            "trigger": "sks",
            "name": name,
            "output": str(output),
            "data": [{"folder": str(pictures)}],
            "train": {"updates": updates},
            "sampling": {"prompts": prompts},
        }
    )
    folder = plan.folder
    events = []
    saved = checkpoints if checkpoints is not None else [one.update for one in validations if one.update]
    for update in range(1, updates + 1, max(1, updates // 20)):
        events.append(
            UpdateFinished(
                update=update, passes=update, epoch=1.0, loss=1 / update, learning_rate=1e-3, grad_norm=1.0, seconds=0.1
            )
        )
    for update in saved:
        place = folder / "checkpoints" / f"update-{update:06d}"
        place.mkdir(parents=True)
        for file in (f"{name}-{update:06d}.safetensors", "state.safetensors", "state.json"):
            (place / file).write_bytes(b"{}")
        lora = str(place / f"{name}-{update:06d}.safetensors")
        events.append(CheckpointSaved(update=update, folder=str(place), lora=lora))
    events += validations
    for update, told in drawn.items():
        for number, (prompt, picture) in enumerate(told):
            path = folder / "samples" / f"{update:06d}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            events.append(PreviewDrawn(update=update, path=str(path), prompt=prompt))
    folder.mkdir(parents=True, exist_ok=True)
    if finished:
        events.append(
            RunFinished(update=updates, folder=str(folder), lora="", proof="diffusers 48/48 modules", seconds=9.0)
        )
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "events.jsonl").write_text("".join(f"{one.to_json()}\n" for one in events))
    return folder

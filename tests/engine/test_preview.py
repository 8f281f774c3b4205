"""Previews are the same every time, leave training alone, and lie side by side on a sheet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit import FlowShift
from lorakit.engine.parts import Source
from lorakit.engine.preview import Painter, Subject, contact_sheet, decoded, encoded, noise_for, save
from lorakit.engine.schedulers import FlowMatch
from lorakit.planned import PlannedScheduler

CPU = torch.device("cpu")


@pytest.fixture
def drawing(make_plan, make_trainer, family, toy):
    """(painter, adapter, denoiser) with a lively adapter, for two prompts."""
    sampling = {"prompts": ["a red circle", "a blue star"], "width": 48, "height": 32, "steps": 3, "guidance": 2}
    plan = make_plan(sampling=sampling)
    trainer = make_trainer(plan, noise=0.3)
    source = Source(toy, "the toy", torch.float32)
    encoder, coder = family.text_encoder(plan, source), family.image_coder(plan, source)
    with torch.no_grad():
        *texts, negative = encoder.encode([*plan.settings.sampling.prompts, " "])
    settings = plan.settings.sampling
    subjects = [Subject(text, negative) for text in texts]
    painter = Painter(family, family.variants["image"], settings, trainer.denoiser, coder, trainer.scheduler, subjects)
    return painter, trainer.adapter, trainer.denoiser


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def test_a_preview_is_the_same_every_time_and_of_the_asked_size(drawing):
    painter, _, _ = drawing
    one, again, other = (painter.draw(number, CPU, torch.float32) for number in (0, 0, 1))
    assert one.size == (48, 32)
    assert np.array_equal(pixels(one), pixels(again))
    assert not np.array_equal(pixels(one), pixels(other))


def test_strength_zero_is_the_base_and_one_is_not(drawing, make_plan, make_trainer):
    painter, adapter, _ = drawing
    full = painter.draw(0, CPU, torch.float32)
    with adapter.at(0.0):
        none = painter.draw(0, CPU, torch.float32)
    with adapter.at(1.0, torch.zeros_like(adapter.flat)):
        base = painter.draw(0, CPU, torch.float32)
    assert np.array_equal(pixels(none), pixels(base))
    assert np.abs(pixels(full) - pixels(base)).max() > 5


def test_drawing_leaves_chance_mode_and_weights_as_they_were(drawing):
    painter, adapter, denoiser = drawing
    denoiser.module.train()
    torch.manual_seed(7)
    state, weights = torch.get_rng_state(), adapter.flat.detach().clone()
    painter.draw(0, CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert denoiser.module.training
    assert torch.equal(adapter.flat, weights)
    assert not adapter.grad.any()


def test_each_prompt_starts_from_its_own_noise(drawing, make_plan):
    painter, _, _ = drawing
    settings, coder = painter._settings, painter._coder
    first, again, second = (noise_for(settings, coder, number) for number in (0, 0, 1))
    assert first.shape == (1, coder.channels, 32 // coder.scale, 48 // coder.scale)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("steps", [2, 20, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0, 3.1])
def test_a_fixed_shift_is_comfyuis(steps, shift):
    """ModelSamplingAuraFlow's table of 1000 levels, which its scheduler `simple` takes evenly from the noisy end."""
    table = [shift * t / (1 + (shift - 1) * t) for t in (number / 1000 for number in range(1, 1001))]
    simple = [table[-(1 + int(number * 1000 / steps))] for number in range(steps)] + [0.0]
    scheduler = FlowMatch(PlannedScheduler(name="flowmatch", timesteps="sigmoid"), FlowShift(terminal=0.02), {})
    for tokens in (64, 4096):  # whatever the size, and without the stretch to a terminal level
        assert scheduler.levels(steps, tokens, shift).tolist() == pytest.approx(simple, abs=1e-6)
    assert scheduler.levels(steps, 64)[-2] == pytest.approx(0.02)


def test_a_picture_is_the_same_when_it_was_a_png(drawing):
    painter, _, _ = drawing
    picture = painter.draw(0, CPU, torch.float32)
    assert np.array_equal(pixels(decoded(encoded(picture))), pixels(picture))


def test_a_sheet_shows_each_picture_in_its_place_with_labels():
    colours = [[(250, 0, 0), (0, 250, 0)], [(0, 0, 250), (250, 250, 0)]]
    rows = [[Image.new("RGB", (64, 32), one) for one in row] for row in colours]
    sheet = contact_sheet(rows, ["first", "second"], ["strength 0", "strength 1"])
    array = pixels(sheet)
    places = {}
    for row in colours:
        for one in row:
            ys, xs = np.nonzero((array == one).all(-1))
            assert len(ys) == (64 * 3) * (32 * 3)  # enlarged three times, whole and unsmoothed
            places[one] = (ys.min(), xs.min())
    (red, green), (blue, yellow) = colours
    assert places[tuple(red)][0] == places[tuple(green)][0] < places[tuple(blue)][0]
    assert places[tuple(red)][1] == places[tuple(blue)][1] < places[tuple(yellow)][1]
    assert (array[: places[tuple(red)][0]] < 128).any()  # column titles
    assert (array[places[tuple(blue)][0] + 96 :] < 128).any()  # the last caption


def test_a_long_caption_is_cut_to_the_sheets_width():
    rows = [[Image.new("RGB", (200, 100), "red")]]
    array = pixels(contact_sheet(rows, ["word " * 100], ["one"]))
    assert (array[:, -6:] == 255).all()


def test_pictures_are_saved_where_they_are_asked_for(tmp_path):
    save(Image.new("RGB", (8, 8), "red"), tmp_path / "samples" / "x.png")
    with Image.open(tmp_path / "samples" / "x.png") as image:
        assert image.size == (8, 8)

"""What lorakit does with reference pictures equals what diffusers' editing pipelines do.

Given the token types, that is, which those pipelines leave out (docs/references.md): the text encoder then takes the
vision tokens for words. What that changes is measured here too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image

from lorakit.control import Control
from lorakit.engine.cache import Cache
from lorakit.engine.material import gather
from lorakit.engine.parts import Batch, Source, Text
from lorakit.engine.phases import Context
from lorakit.engine.preview import Painter, noise_for
from lorakit.engine.schedulers import FlowMatch
from lorakit.planned import PlannedScheduler
from lorakit_qwen.family import UNPATCHED, Qwen
from lorakit_qwen.model import TEMPLATES, QwenDenoiser, pack, unpack
from tests.plugins.processor import load_processor

# the pipelines' own call of their processor; transformers' defaults for it name a length without cutting to it
pytestmark = pytest.mark.filterwarnings("ignore:`max_length` is ignored when `padding`=`True`:UserWarning")

CPU = torch.device("cpu")
SHORT, LONG = "a red circle", "make the large blue star on the left a small green square at the bottom"
VARIANTS = ("edit", "edit-2509", "edit-2511")
SIZES = {"wide": (150, 100), "tall": (70, 110), "long": (200, 90)}  # width, height of the pictures as they are
SEEN, ENCODED = 112, 96  # what stands here for the 384 of text encoders and the 1024 of the VAE
CASES = [(variant, some) for variant in VARIANTS for some in (("wide",), ("tall",))]
CASES += [(variant, some) for variant in VARIANTS[1:] for some in (("wide", "tall"), ("tall", "long", "wide"))]


def farthest(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


def pixels_apart(one, other) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


# -- both sides of the comparison --------------------------------------------------------------------------------


class Supplied:
    """A pipeline's processor whose token types reach the pipeline's text encoder, as they should."""

    def __init__(self, pipeline) -> None:
        self._processor, self._types = pipeline.processor, None
        pipeline.processor = self
        pipeline.text_encoder.register_forward_pre_hook(self._supply, with_kwargs=True)

    def __call__(self, **options: Any) -> Any:
        given = self._processor(**options)
        self._types = given["mm_token_type_ids"]
        return given

    def _supply(self, module, arguments, options):
        return arguments, {**options, "mm_token_type_ids": self._types}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Path]:
    """Pictures of speckles and slopes: unlike any of their flips and turns, and sensitive to resampling."""
    folder, chance = tmp_path_factory.mktemp("references"), np.random.default_rng(5)
    made = {}
    for name, (width, height) in SIZES.items():
        slope = np.linspace(0, 120, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
        speckles = chance.integers(0, 70, (height, width, 3))
        made[name] = folder / f"{name}.png"
        Image.fromarray((slope + speckles).astype(np.uint8)).save(made[name])
    return made


@pytest.fixture(scope="module")
def sources(kit, tmp_path_factory) -> dict[str, Source]:
    found = {}
    for variant in VARIANTS:
        folder = tmp_path_factory.mktemp(variant)
        kit.shelves.families["qwen"].toy(folder, variant)
        found[variant] = Source(folder, f"the toy of {variant}", torch.float32)
    return found


def load(source: Source, variant: str):
    kind = getattr(diffusers, Qwen.variants[variant].pipeline)
    processor = load_processor(source)  # diffusers' own way of loading it needs torchvision
    made = kind.from_pretrained(source.folder, processor=processor, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pipelines(sources):
    """The pipelines, given the token types."""
    made = {variant: load(source, variant) for variant, source in sources.items()}
    for one in made.values():
        Supplied(one)
    return made


@pytest.fixture
def denoisers(sources):
    def make(variant: str) -> QwenDenoiser:
        made = QwenDenoiser(sources[variant])
        made.module.requires_grad_(False).eval()
        return made

    return make


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The pipelines' areas of reference pictures, which are not arguments, at a toy's size."""
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", SEEN**2)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", ENCODED**2)
    shape = pipeline_qwenimage_edit.calculate_dimensions
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: shape(ENCODED**2, ratio))


@pytest.fixture
def gathered(kit, make_plan, sources, pictures, tmp_path):
    """What lorakit draws from: (its settings, the encoded subjects, the image coder)."""

    def make(variant: str, prompts: dict[str, tuple[str, ...]], guidance=1.0, size=(80, 48), **options):
        references = [[str(pictures[name]) for name in some] for some in prompts.values()]
        sampling = {"width": size[0], "height": size[1], "guidance": guidance, "steps": 4, "seed": 3}
        plan = make_plan(
            variant=variant,
            model={"source": str(sources[variant].folder)},
            train={"reference_resolution": ENCODED},
            sampling={"prompts": list(prompts), "references": references, **sampling},
            text_encoder={"reference_resolution": ENCODED if variant == "edit" else SEEN, **options},
        )
        family = kit.shelves.families["qwen"]
        context = Context(plan, family, kit.shelves, sources[variant], Cache(tmp_path / "cache"), CPU, Control())
        material = drained(gather(context))
        return plan.settings.sampling, material.subjects(), material.coder

    return make


def drained(work):
    """The answer of a phase, its events dropped."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def opened(pictures, some):
    """The pictures as a pipeline is given them: several in a list, a single one as it is."""
    found = [Image.open(pictures[name]) for name in some]
    return found if len(found) > 1 else found[0]


def conditions(pipeline, pictures, some):
    """The pictures as the pipeline itself shows them to its text encoder."""
    found = []
    for name in some:
        image = Image.open(pictures[name])
        if isinstance(pipeline, QwenImageEditPlusPipeline):
            shape = pipeline_qwenimage_edit_plus.calculate_dimensions(SEEN**2, image.width / image.height)
        else:
            shape = pipeline_qwenimage_edit.calculate_dimensions(1024**2, image.width / image.height)
        found.append(pipeline.image_processor.resize(image, shape[1], shape[0]))
    return found if isinstance(pipeline, QwenImageEditPlusPipeline) else found[0]


def text_of(pipeline, prompt: str, seen) -> torch.Tensor:
    with torch.no_grad():
        hidden, mask = pipeline.encode_prompt(prompt, image=seen)
    assert mask is None
    return hidden


def pipeline_draws(pipeline, prompt, seen, settings, noise, **options):
    guided = {"negative_prompt": settings.negative} if settings.guidance > 1 else {}
    given = {} if seen is None else {"image": seen}
    return pipeline(
        **given,
        **({"prompt": prompt} if prompt is not None else {}),
        **guided,
        latents=pack(noise),
        width=settings.width,
        height=settings.height,
        num_inference_steps=settings.steps,
        true_cfg_scale=settings.guidance,
        **options,
    ).images


def drawn_by(denoiser, coder, settings, subjects):
    scheduler = FlowMatch(
        PlannedScheduler(name="flowmatch", timesteps="sigmoid"), Qwen.variants["image"].flow_shift, {}
    )
    return Painter(Qwen(), Qwen.variants["image"], settings, denoiser, coder, scheduler, subjects).draw(
        0, CPU, torch.float32
    )


# -- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "some"), CASES)
def test_text_with_references_equals_encode_prompt(gathered, pipelines, pictures, variant, some):
    pipeline = pipelines[variant]
    prompts = {SHORT: some, LONG: some, " ": some}
    _, subjects, _ = gathered(variant, prompts)
    seen = conditions(pipeline, pictures, some)
    for prompt, subject in zip(prompts, subjects, strict=True):
        assert farthest(subject.text.hidden, text_of(pipeline, prompt, seen)) < 1e-5
        assert farthest(subject.negative.hidden, text_of(pipeline, " ", seen)) < 1e-5


def test_the_order_of_references_is_seen(gathered):
    orders = ("wide", "tall"), ("tall", "wide")
    (one,), (other,) = (gathered("edit-2509", {SHORT: some})[1] for some in orders)
    assert one.text.hidden.shape == other.text.hidden.shape
    assert farthest(one.text.hidden, other.text.hidden) > 0.1


def test_templates_are_the_pipelines(pipelines):
    for variant, pipeline in pipelines.items():
        template, dropped = pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx
        assert tuple(TEMPLATES["edit"].values()) == (
            template.replace("<|vision_start|><|image_pad|><|vision_end|>", ""),
            dropped,
        )
        assert ("<|image_pad|>" in template) == (variant == "edit")


def test_what_a_pipeline_without_token_types_draws_differently(gathered, sources, pictures, denoisers, monkeypatch):
    """The figure of docs/references.md and of the plan's warning, at the published size of 384 pixels square."""
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 384**2)
    settings, (subject,), coder = gathered("edit-2509", {SHORT: ("wide",)}, reference_resolution=384)
    bare, calls = load(sources["edit-2509"], "edit-2509"), []
    bare.transformer.register_forward_pre_hook(lambda _, __, options: calls.append(options), with_kwargs=True)
    noise = noise_for(settings, coder)
    theirs = pipeline_draws(bare, SHORT, opened(pictures, ("wide",)), settings, noise)[0]
    text = calls[0]["encoder_hidden_states"]
    assert text.shape == subject.text.hidden.shape
    off = float((text - subject.text.hidden).norm() / subject.text.hidden.norm())
    page = Path(__file__).parents[2] / "docs" / "references.md"
    figure = f"differs by {100 * off:.1f} %"
    assert figure in page.read_text(encoding="utf-8")
    assert figure in UNPATCHED
    assert pixels_apart(theirs, drawn_by(denoisers("edit-2509"), coder, settings, [subject])) > 1


# -- latents of references ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "some"), CASES)
def test_latents_of_references_equal_the_pipelines(gathered, pipelines, pictures, variant, some):
    pipeline = pipelines[variant]
    _, (subject,), coder = gathered(variant, {SHORT: some})
    assert len(subject.references) == len(some)
    for name, latents in zip(some, subject.references, strict=True):
        image = Image.open(pictures[name])
        width, height = pipeline_qwenimage_edit_plus.calculate_dimensions(ENCODED**2, image.width / image.height)
        with torch.no_grad():
            pixels = pipeline.image_processor.preprocess(image, height, width).unsqueeze(2)
            expected = pipeline._encode_vae_image(pixels, None)[0, :, 0]
        assert latents.shape == (16, height // coder.scale, width // coder.scale)
        assert farthest(latents, expected) < 1e-5


# -- the denoiser ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "some"), CASES)
def test_one_call_of_the_denoiser_equals_the_pipelines(gathered, pipelines, pictures, denoisers, variant, some):
    pipeline, calls = pipelines[variant], []

    def listen(module, arguments, options, answer):
        calls.append((options["timestep"], answer[0]))

    settings, (subject,), coder = gathered(variant, {SHORT: some})
    noise = noise_for(settings, coder)
    listening = pipeline.transformer.register_forward_hook(listen, with_kwargs=True)
    pipeline_draws(pipeline, SHORT, opened(pictures, some), settings, noise, output_type="latent")
    listening.remove()
    (t, answer), *_ = calls
    expected = unpack(answer[:, : noise.shape[-1] * noise.shape[-2] // 4], *noise.shape[-2:])
    batch = Batch(subject.text, tuple(one[None] for one in subject.references))
    with torch.no_grad():
        found = denoisers(variant).predict(noise, t, batch)
        blind = denoisers(variant).predict(noise, t, Batch(subject.text))
    assert farthest(found, expected) < 1e-5
    assert farthest(found, blind) > 1e-2  # or the comparison says nothing of references


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_of_two_equals_its_items(gathered, denoisers, variant):
    some = ("wide",) if variant == "edit" else ("wide", "tall")
    _, subjects, _ = gathered(variant, {SHORT: some, LONG: some})
    chance = torch.Generator().manual_seed(7)
    noise, t = torch.randn(2, 16, 12, 20, generator=chance), torch.tensor([0.3, 0.8])
    mirrored = [tuple(one.flip(-1) for one in subjects[1].references), subjects[0].references]
    stacked = tuple(torch.stack(pair) for pair in zip(*mirrored, strict=True))
    denoiser = denoisers(variant)
    with torch.no_grad():
        together = denoiser.predict(noise, t, Batch(Text.collate([one.text for one in subjects]), stacked))
        for number, subject in enumerate(subjects):
            batch = Batch(subject.text, tuple(one[number : number + 1] for one in stacked))
            alone = denoiser.predict(noise[number : number + 1], t[number : number + 1], batch)
            assert farthest(together[number : number + 1], alone) < 1e-5


def test_2511_takes_references_as_free_of_noise(gathered, denoisers):
    _, (subject,), _ = gathered("edit-2511", {SHORT: ("wide",)})
    noise, t = torch.randn(1, 16, 12, 20, generator=torch.Generator().manual_seed(7)), torch.tensor([0.7])
    batch = Batch(subject.text, (subject.references[0][None],))
    with torch.no_grad():
        as_clean, as_noisy = (denoisers(variant).predict(noise, t, batch) for variant in ("edit-2511", "edit-2509"))
    assert farthest(as_clean, as_noisy) > 1e-3


# -- previews ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize(("variant", "some"), CASES)
def test_preview_equals_the_pipelines_picture(gathered, pipelines, pictures, denoisers, variant, some, guidance):
    settings, subjects, coder = gathered(variant, {LONG: some}, guidance=guidance)
    drawn = drawn_by(denoisers(variant), coder, settings, subjects)
    noise = noise_for(settings, coder)
    expected = pipeline_draws(pipelines[variant], LONG, opened(pictures, some), settings, noise)[0]
    assert drawn.size == (80, 48)
    assert pixels_apart(drawn, expected) <= 1


# -- without references ------------------------------------------------------------------------------------------


@pytest.fixture
def text_to_image(pipelines):
    """The text-to-image pipeline with an editing model's parts."""

    def make(variant: str) -> QwenImagePipeline:
        parts = {name: part for name, part in pipelines[variant].components.items() if name != "processor"}
        made = QwenImagePipeline(**parts)
        made.set_progress_bar_config(disable=True)
        return made

    return make


@pytest.fixture(autouse=True)
def no_stale_types(pipelines):
    """Text without pictures has no token types to supply."""
    for one in pipelines.values():
        one.processor._types = None


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_text_to_image_template_equals_the_text_to_image_pipeline(
    gathered, text_to_image, denoisers, variant, guidance
):
    settings, subjects, coder = gathered(variant, {LONG: ()}, guidance=guidance, template="text-to-image")
    drawn = drawn_by(denoisers(variant), coder, settings, subjects)
    expected = pipeline_draws(text_to_image(variant), LONG, None, settings, noise_for(settings, coder))[0]
    assert pixels_apart(drawn, expected) <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_edit_template_without_references_is_that_of_edit_plus(gathered, pipelines, text_to_image, denoisers, variant):
    settings, (subject,), coder = gathered(variant, {LONG: ()})
    text = text_of(QwenImageEditPlusPipeline(**pipelines[variant].components), LONG, None)
    assert farthest(subject.text.hidden, text) < 1e-5
    drawn = drawn_by(denoisers(variant), coder, settings, [subject])
    words = {"prompt_embeds": text, "prompt_embeds_mask": torch.ones(text.shape[:2], dtype=torch.long)}
    expected = pipeline_draws(text_to_image(variant), None, None, settings, noise_for(settings, coder), **words)[0]
    assert pixels_apart(drawn, expected) <= 1

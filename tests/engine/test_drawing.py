"""What `sample` and `grid` draw: with any file what training drew with its own, and nothing twice."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from PIL import Image

from lorakit import Control, Layer
from lorakit.engine.grid_sheet import sheet
from lorakit.engine.lora_pairs import Pair
from lorakit.engine.parts import Source
from lorakit.engine.worn import Worn
from lorakit.errors import ConfigError, LorakitError, ModelError, RunError
from lorakit.events import DrawingStopped, PhaseStarted, PictureDrawn, SheetDrawn
from lorakit.grid import Piece
from lorakit.lora_order import Order
from tests.engine.lora_files import FAMILIES, made, write

PROMPTS = ["a sks circle", "a star"]


@pytest.fixture(scope="module")
def run(kit, tmp_path_factory):
    """A run of three checkpoints, its previews drawn with the last weights."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 90, 120)).save(folder / "pictures" / f"{number}.png")
        (folder / "pictures" / f"{number}.txt").write_text("a circle")
    plan = kit.plan(
        {
            "family": "qwen",
            "preset": "none",
            "name": "run",
            "trigger": "sks",
            "output": str(folder),
            "model": {"source": "toy"},
            "data": [{"folder": str(folder / "pictures")}],
            "lora": {"rank": 4, "alpha": 2.0, "targets": ["attn.to_q", "attn.to_out.0"]},
            "optimizer": {"learning_rate": 0.05},
            "train": {"resolution": 32, "precision": "fp32", "updates": 3, "gradient_checkpointing": False},
            "quantization": {"name": "none"},
            "sampling": {
                "prompts": PROMPTS, "steps": 2, "width": 32, "height": 32, "guidance": 2, "every": 3, "strengths": [],
            },
            "validation": {"every": 0},
            "save": {"every": 1, "dtype": "fp32"},
        }
    )  # fmt: skip
    assert not plan.errors
    for _ in kit.train(plan):
        pass
    return plan.folder


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run, to draw into."""
    return shutil.copytree(run, tmp_path / "runs" / "run")


@pytest.fixture
def sample(kit, tmp_path):
    """Draw with a file; the pictures."""

    def call(file, *layers, strength=1.0, family=None):
        output = Layer({"output": str(tmp_path / "runs")}, "the test")
        facts, plan = kit.drawing(file, [*(Layer(one, "the test") for one in layers), output], family=family)
        places = [tmp_path / f"{number}.png" for number in range(len(plan.settings.sampling.prompts))]
        events = list(kit.sample(plan, facts, strength, places))
        assert [one.path for one in events if isinstance(one, PictureDrawn)] == list(map(str, places))
        return [pixels(path) for path in places]

    return call


def pixels(path):
    with Image.open(path) as picture:
        return picture.convert("RGB").tobytes()


def previews(run):
    return [pixels(run / "samples" / f"000003-{number}.png") for number in range(2)]


# -- one file -----------------------------------------------------------------------------------------------------


def test_a_run_draws_again_what_it_drew(run, sample):
    assert sample(run) == previews(run)
    assert sample(run, strength=0.5) != previews(run)


def test_a_file_alone_draws_it_by_its_metadata(run, sample, tmp_path):
    file = shutil.copy(run / "run.safetensors", tmp_path / "moved.safetensors")
    assert sample(tmp_path / file) == previews(run)


@pytest.mark.parametrize("asked", [{"layout": "kohya"}, {"layout": "kohya", "alpha": 3.0}, {"layout": "comfyui"}])
def test_every_layout_draws_it(kit, run, sample, tmp_path, asked):
    kit.export([kit.inspect(run / "run.safetensors")], Order(**asked), tmp_path / "x.safetensors")
    found, wanted = sample(tmp_path / "x.safetensors"), previews(run)
    assert all(max(abs(a - b) for a, b in zip(*pair, strict=True)) <= 1 for pair in zip(found, wanted, strict=True))


def test_without_metadata_the_toy_is_known_by_its_sizes(kit, run, sample, tmp_path):
    file = tmp_path / "x.safetensors"
    kit.export([kit.inspect(run / "run.safetensors")], Order(layout="diffusers", metadata=False), file)
    with pytest.raises(ModelError, match="is not certain"):
        kit.drawing(file, [])
    with pytest.raises(ConfigError, match="no prompt is named"):
        kit.drawing(file, [], family="qwen")
    table = {"prompts": PROMPTS, "steps": 2, "width": 32, "height": 32, "guidance": 2}
    assert sample(file, {"sampling": table}, family="qwen") == previews(run)


def test_what_is_said_comes_first(run, sample):
    first, _ = sample(run, {"sampling": {"seed": 43}})
    assert first not in previews(run)
    (other,) = sample(run, {"sampling": {"prompts": ["a star"], "references": [[]], "seed": 43}})
    assert other == previews(run)[1]


def test_strength_nothing_is_the_base_whatever_is_worn(run, sample):
    first, last = (sample(run / f"checkpoints/update-00000{n}/run-00000{n}.safetensors", strength=0.0) for n in (1, 3))
    assert first == last
    assert first != previews(run)


def test_an_older_checkpoint_draws_otherwise(run, sample):
    assert sample(run / "checkpoints/update-000001/run-000001.safetensors") != previews(run)


def test_a_lora_of_another_model_is_refused(kit, run, sample, tmp_path):
    qwen = kit.shelves.families["qwen"]
    pairs = {"transformer.transformer_blocks.0.img_mlp.net.2": Pair(torch.ones(1, 12288), torch.ones(3072, 1))}
    file = write(tmp_path / "large.safetensors", qwen, pairs)
    toy = {"model": {"source": "toy"}, "preset": "toy", "sampling": {"prompts": ["x"], "references": [[]]}}
    with pytest.raises(ModelError, match="12288 by 3072, and the model's"):
        sample(file, toy)
    pairs = {"transformer.transformer_blocks.59.img_mlp.net.2": Pair(torch.ones(1, 512), torch.ones(128, 1))}
    file = write(tmp_path / "deep.safetensors", qwen, pairs)
    with pytest.raises(ModelError, match=r"transformer_blocks\.59\.img_mlp\.net\.2 is not there"):
        sample(file, toy)
    with pytest.raises(ModelError, match="is not for SDXL"):
        sample(run / "run.safetensors", family="sdxl")


def test_metadata_that_lies_is_refused_in_words(kit, run, tmp_path):
    qwen = kit.shelves.families["qwen"]
    for lie in ({"variant": "no"}, {"model": {"source": "/nowhere"}}, {"sampling": {"steps": "x"}}, {"train": 3}):
        config = {"family": "qwen", "sampling": {"prompts": ["x"]}, **lie}
        file = write(tmp_path / "x.safetensors", qwen, made(qwen), about={"lorakit.config": json.dumps(config)})
        if lie == {"train": 3}:
            assert kit.drawing(file, [Layer({"model": {"source": "toy"}}, "the test")])
            continue
        with pytest.raises(LorakitError):
            kit.drawing(file, [])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_of_a_file_is_put_on_its_own_place(kit, tmp_path, name):
    family = kit.shelves.families[name]
    family.toy(tmp_path, family.default_variant)
    plan = kit.plan({"family": name, "preset": "toy"})
    denoiser = family.denoiser(plan, Source(tmp_path, "the toy", torch.float32))
    pairs = made(family, scale=0.5)
    before = {layer: denoiser.module.get_submodule(layer.partition(".")[2]) for layer in pairs}
    worn = Worn({denoiser.component: denoiser.module}, family, plan.settings.lora, pairs, torch.device("cpu"))
    for layer, pair in pairs.items():
        place = denoiser.module.get_submodule(layer.partition(".")[2])
        assert place.base is before[layer]
        seen = torch.randn(3, pair.lora_a.shape[1])
        with worn.adapter.at(0.7):
            change = place(seen) - place.base(seen)
        assert torch.allclose(change, 0.7 * 0.5 * seen @ pair.lora_a.T @ pair.lora_b.T, atol=1e-5)
    worn.put_on(dict(list(pairs.items())[:1]))
    layer = list(pairs)[-1]
    place = denoiser.module.get_submodule(layer.partition(".")[2])
    seen = torch.randn(3, place.lora_A.shape[1])
    assert torch.equal(place(seen), place.base(seen))


def test_a_lora_of_the_text_encoder_changes_the_text(kit, sample, tmp_path):
    sdxl = kit.shelves.families["sdxl"]
    sdxl.toy(tmp_path / "toy", "base")
    (weights,) = (tmp_path / "toy" / "text_encoder").glob("*.safetensors")
    held = {n: t for n, t in safetensors.torch.load_file(weights).items() if n.endswith("mlp.fc1.weight")}
    pairs = {}
    for name, tensor in held.items():
        layer = f"text_encoder.text_model.{name.removeprefix('text_model.').removesuffix('.weight')}"
        outputs, inputs = tensor.shape
        pairs[layer] = Pair(torch.randn(2, inputs), torch.randn(outputs, 2))
    assert pairs
    file = write(tmp_path / "te.safetensors", sdxl, pairs, "kohya")
    table = {"prompts": ["a red circle"], "references": [[]], "steps": 2, "width": 48, "height": 48}
    toy = {"model": {"source": "toy"}, "preset": "toy", "sampling": table}
    assert sample(file, toy) != sample(file, toy, strength=0.0)


# -- the grid -----------------------------------------------------------------------------------------------------


def drawn(events):
    found = [one for one in events if isinstance(one, PictureDrawn)]
    return [one for one in found if not one.kept], [one for one in found if one.kept]


def rows(run):
    return json.loads((run / "grid" / "index.json").read_text())


def test_a_grid_has_every_combination_and_draws_nothing_twice(kit, own, sample):
    asked = {"checkpoints": [1, 3], "strengths": [0.5, 1.0], "guidances": [2.0]}
    events = list(kit.grid(own, **asked))
    new, kept = drawn(events)
    assert (len(new), len(kept)) == (8, 0)
    assert sum(isinstance(one, PhaseStarted) and one.phase == "load" for one in events) == 1
    found = {(one["update"], one["strength"], one["guidance"], one["prompt"]): own / one["path"] for one in rows(own)}
    assert found.keys() == {(u, s, 2.0, p) for u in (1, 3) for s in (0.5, 1.0) for p in PROMPTS}
    assert {one["prompt"]: one["seed"] for one in rows(own)} == dict(zip(PROMPTS, (42, 43), strict=True))
    assert [pixels(found[3, 1.0, 2.0, prompt]) for prompt in PROMPTS] == previews(own)
    alone = sample(own / "checkpoints/update-000001/run-000001.safetensors", strength=0.5)
    assert [pixels(found[1, 0.5, 2.0, prompt]) for prompt in PROMPTS] == alone

    again = list(kit.grid(own, **asked))
    assert [len(one) for one in drawn(again)] == [0, 8]
    assert not [one for one in again if isinstance(one, PhaseStarted) and one.phase == "load"]
    assert isinstance(again[-1], SheetDrawn)
    (own / rows(own)[0]["path"]).unlink()
    assert [len(one) for one in drawn(kit.grid(own, **asked))] == [1, 7]
    assert [len(one) for one in drawn(kit.grid(own, **{**asked, "strengths": [0.5, 0.7]}))] == [4, 4]
    assert len(rows(own)) == 12
    changed = Layer({"sampling": {"steps": 3}}, "the test")
    assert [len(one) for one in drawn(kit.grid(own, [changed], **{**asked, "checkpoints": [1]}))] == [4, 0]


def test_a_stopped_grid_goes_on(kit, own):
    asked = {"checkpoints": [3], "strengths": [1.0], "guidances": [1.0, 2.0]}
    control, seen = Control(), []
    for event in kit.grid(own, **asked, control=control):
        seen.append(event)
        if isinstance(event, PictureDrawn):
            control.stop("enough")
    assert isinstance(seen[-1], DrawingStopped)
    assert (seen[-1].drawn, seen[-1].total, len(rows(own))) == (1, 4, 1)
    assert [len(one) for one in drawn(kit.grid(own, **asked))] == [3, 1]


def test_a_checkpoint_that_was_changed_is_drawn_again(kit, own):
    asked = {"checkpoints": [2], "strengths": [1.0], "guidances": [1.0]}
    list(kit.grid(own, **asked))
    file = own / "checkpoints/update-000002/run-000002.safetensors"
    kit.export([kit.inspect(file)], Order(layout="diffusers", weights=(0.5,)), file)
    assert [len(one) for one in drawn(kit.grid(own, **asked))] == [2, 0]
    (own / "grid" / "index.json").write_text("{")  # what cannot be read is made anew
    assert [len(one) for one in drawn(kit.grid(own, **asked))] == [2, 0]


def test_what_a_grid_cannot_be_drawn_of(kit, own):
    with pytest.raises(ConfigError, match="no checkpoint 7") as error:
        kit.grid(own, checkpoints=[7])
    assert "There are 1; 2; 3" in str(error.value)
    file = own / "checkpoints/update-000002/run-000002.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ModelError, match="no safetensors file"):
        kit.grid(own)
    shutil.rmtree(own / "checkpoints")
    assert len(drawn(kit.grid(own, strengths=[1.0], guidances=[1.0]))[0]) == 2  # the finished file stands for it
    (own / "run.safetensors").unlink()
    with pytest.raises(RunError, match="has no checkpoint to draw with"):
        kit.grid(own)
    with pytest.raises(RunError):
        kit.grid(own.parent)


def test_the_sheet_has_a_place_for_every_picture():
    colours = {1: (200, 0, 0), 2: (0, 200, 0)}
    found = [
        Piece(update, strength, guidance, number, f"prompt {number} " * 30, 42 + number, "k")
        for update in (1, 2)
        for strength in (0.6, 1.0)
        for guidance in (3.0, 4.0)
        for number in (0, 1)
    ]
    whole = sheet(found, lambda piece: Image.new("RGB", (64, 32), colours[piece.update]))
    counts = {colour: number for number, colour in whole.getcolors(1 << 20)}
    assert counts[colours[1]] == counts[colours[2]] == 8 * 224 * 112

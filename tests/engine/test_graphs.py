"""Passes that are captured and replayed make the same run, by a stand-in for CUDA graphs that replays operations."""

from __future__ import annotations

import functools
import gc
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from lorakit.config import Layer
from lorakit.control import Control
from lorakit.engine import checkpoint, graphs, loop
from lorakit.engine.adapter import attach
from lorakit.engine.graphs import Graphs, put_together, taken_apart
from lorakit.engine.loop import Trainer
from lorakit.engine.parts import Batch, Source, Text
from lorakit.engine.preparing import Given, Item
from lorakit.engine.recomputing import Recomputing
from lorakit.engine.watching import Watch
from lorakit.errors import ConfigError, ModelError
from lorakit.events import PassCaptured, PhaseFinished, RunStopped, UpdateFinished, Warned
from lorakit.order import Turn
from lorakit.planned import PlannedLora
from tests.engine.tape import Recorder

CPU = torch.device("cpu")


@pytest.fixture
def taped(monkeypatch):
    """The stand-in in every run; a form is captured after its second pass."""
    monkeypatch.setattr(graphs, "recorder_for", lambda device: Recorder())
    monkeypatch.setattr(graphs, "WARM", 2)


# -- one pass: everything that it is given counts ------------------------------------------------------------------


class Small(nn.Module):
    """Reads all that a pass may be given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, given: Given):
        told = given.about
        assert told.text.pooled is not None
        assert told.sizes is not None
        seen = (
            given.noisy.flatten(1)
            + told.text.hidden.mean((1, 2))[:, None]
            + told.text.pooled
            + told.references[0].flatten(1)
        )
        seen = self.first(seen + given.t[:, None] + told.sizes.float().mean(1, keepdim=True)) * (told.guidance or 1)
        return self.second(torch.tanh(seen * given.answers[0] + given.answers[1]))


def given(seed: int, pictures: int = 2, length: int = 3, guidance: float | None = 1.5) -> Given:
    chance = torch.Generator().manual_seed(seed)

    def draw(*shape: int):
        return torch.randn(shape, generator=chance)

    sizes = torch.randint(9, (pictures, 6), generator=chance)
    text = Text(draw(pictures, length, 4), (length,) * pictures, draw(pictures, 6))
    about = Batch(text, (draw(pictures, 6, 1, 1),), sizes, guidance)
    answers = (draw(1, 6), draw(1, 6))
    weight, share = torch.rand(pictures, generator=chance), torch.rand(pictures, generator=chance)
    return Given(draw(pictures, 2, 3, 1), draw(pictures), about, draw(pictures, 6), weight, share, answers)


class Model:
    """The small model with an adapter; `also` is done in every pass, to what it computes."""

    def __init__(self, also=lambda x: x) -> None:
        module = Small()
        denoiser = SimpleNamespace(module=module, blocks=[module], component="small")
        settings = PlannedLora(rank=2, alpha=2.0, targets=("first", "second"))
        self.adapter = attach(denoiser, settings, 3, CPU)
        self.adapter.flat.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        self.module, self.also = module, also
        self.recorder = Recorder()
        self.graphs = Graphs(self.compute, self.recorder, CPU)

    def compute(self, one: Given):
        self.adapter.train()
        error = (self.also(self.module(one)) - one.target) ** 2
        losses = error.mean(1) * one.weight
        losses.backward(one.share)
        return losses.detach()


def same(model: Model, other: Model, passes) -> bool:
    """Whether passes give the same losses and the same sum of gradients, to the bit."""
    losses = [torch.equal(model.graphs.passed(one), other.compute(one)) for one in passes]
    return all(losses) and torch.equal(model.adapter.grad, other.adapter.grad)


def test_replayed_passes_answer_and_learn_as_plain_ones():
    model, other = Model(), Model()
    passes = [given(seed, *form) for seed in range(6) for form in ((2, 3), (1, 3), (2, 4))]
    assert same(model, other, passes)
    assert model.graphs.captured == len(model.recorder.tapes) == 3
    assert str(model.graphs) == "9 of 18 passes replayed, by 3 graphs; 9 not: before they were captured"


def test_weights_that_moved_are_read_and_gradients_are_added_to_what_is_there():
    model, other = Model(), Model()
    for seed in range(8):
        for one in (model, other):
            one.adapter.grad.zero_()
        assert same(model, other, [given(seed), given(seed + 50)])
        for one in (model, other):
            one.adapter.flat.data -= one.adapter.grad


PLACES = len(taken_apart(given(0), found := []) and found)


@pytest.mark.parametrize("place", range(PLACES))
def test_whatever_is_not_copied_makes_a_difference(monkeypatch, place):
    """All tensors of a pass but one: the test above fails if any of them stays as it was when it was captured."""
    copy = torch._foreach_copy_

    def forgetful(places, given):
        assert len(places) == len(given) == PLACES
        copy(places[:place] + places[place + 1 :], given[:place] + given[place + 1 :])

    monkeypatch.setattr(torch, "_foreach_copy_", forgetful)
    assert not same(Model(), Model(), [given(seed) for seed in range(6)])


def test_a_form_is_everything_that_is_no_copied_number():
    def form(one: Given):
        return taken_apart(one, [])

    assert form(given(0)) == form(given(1))
    others = [given(0, 1), given(0, 2, 4), given(0, guidance=2.0), given(0, guidance=None)]
    turned = Given(**{**parts(given(0)), "noisy": given(0).noisy.transpose(1, 2).contiguous().transpose(1, 2)})
    halved = given(0).about.to(CPU, torch.bfloat16)
    others += [turned, Given(**{**parts(given(0)), "about": halved}), Given(**{**parts(given(0)), "answers": ()})]
    assert len({form(one) for one in (given(0), *others)}) == len(others) + 1


def parts(one: Given) -> dict:
    return {name: getattr(one, name) for name in Given.__slots__}


def test_what_is_taken_apart_is_put_together_again():
    found: list[torch.Tensor] = []
    one = given(0)
    form = taken_apart(one, found)
    other = put_together(one, iter([tensor.clone() for tensor in found]))
    again: list[torch.Tensor] = []
    assert taken_apart(other, again) == form
    assert all(torch.equal(*pair) and pair[0] is not pair[1] for pair in zip(found, again, strict=True))


# -- what cannot be captured goes the plain way, and why is told ---------------------------------------------------

OBSTACLES = {
    "random numbers are drawn": lambda x: functional.dropout(x, 0.5),
    "the host reads a value of a tensor": lambda x: x * (2 if x.detach().sum() > 0 else 1),
    "the size of a tensor depends on values": lambda x: x + x.detach().nonzero().float().mean(),
    "a tensor is made of the host's numbers": lambda x: x * torch.tensor([2.0]),
    "tensors lie in different places (cpu, meta)": lambda x: (torch.ones(2).to("meta"), x)[1],
}


@pytest.mark.parametrize("why", OBSTACLES)
def test_what_depends_on_the_host_is_seen_and_goes_the_plain_way(why):
    model, other = Model(OBSTACLES[why]), Model(OBSTACLES[why])
    for seed in range(6):
        results = []
        for compute in (model.graphs.passed, other.compute):
            torch.manual_seed(seed)
            results.append(compute(given(seed)))
        assert torch.equal(*results)
    assert torch.equal(model.adapter.grad, other.adapter.grad)
    assert not model.recorder.tapes
    (news,) = model.graphs.news()
    assert isinstance(news, Warned)
    assert f"tokens of text, 1 reference: {why} (aten." in news.message
    assert "0 of 6 passes replayed, by 0 graphs; 6 not: " + why in str(model.graphs)
    assert not list(model.graphs.news())


def test_attention_that_drops_nothing_draws_nothing():
    def attends(x):
        rows = x[None, None]
        return functional.scaled_dot_product_attention(rows, rows, rows)[0, 0]

    model, other = Model(attends), Model(attends)
    assert same(model, other, [given(seed) for seed in range(5)])
    assert model.graphs.captured == 1


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_so_do_cudas_kernels(kernel):
    """By torch's own marks on them, for none runs here; they are called with the dropout left out, or named."""
    operation = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention").default
    assert torch.Tag.nondeterministic_seeded in operation.tags
    rows = torch.zeros(1, 1, 2, 8)
    for told, drops in (({}, False), ({"dropout_p": 0.0}, False), ({"dropout_p": 0.1}, True)):
        watch = Watch(CPU)
        watch._look(operation, (rows, rows, rows), told)
        assert bool(watch.obstacles) == drops


def test_places_by_number_have_a_size_and_places_by_truth_have_none():
    x = torch.randn(4, 3)
    with Watch(CPU) as watch:
        x[torch.tensor([1, 2]).long()]
        x.index_put_((torch.zeros(1, dtype=torch.long),), torch.zeros(3))
    assert list(watch.obstacles) == ["a tensor is made of the host's numbers (aten.lift_fresh.default)"]
    for pick in (lambda: x[x > 0], lambda: x.masked_select(x > 0), lambda: x.index_put_((x > 9,), torch.zeros(1))):
        with Watch(CPU) as watch:
            pick()
        assert [one.partition(" (")[0] for one in watch.obstacles] == ["the size of a tensor depends on values"]


def test_what_shows_while_it_is_captured_is_not_replayed():
    drawn = []

    def late(x):
        drawn.append(x)
        return x * torch.tensor(2.0) if len(drawn) > graphs.WARM else x * 2.0

    model, other = Model(late), Model(lambda x: x * 2.0)
    with torch.no_grad():
        before = other.adapter.grad.clone()
    assert same(model, other, [given(seed) for seed in range(6)])
    assert not torch.equal(before, model.adapter.grad)
    assert model.graphs.captured == 0
    assert "host's numbers" in str(model.graphs)


def test_gradients_that_flow_on_are_not_captured():
    model = Model()
    for seed in range(5):
        one = given(seed)
        one.about.text.hidden.requires_grad_()
        model.graphs.passed(one)
        assert one.about.text.hidden.grad is not None
    assert model.graphs.captured == 0
    assert "5 not: gradients flow on" in str(model.graphs)


def test_so_many_forms_are_captured_and_no_more(monkeypatch):
    monkeypatch.setattr(graphs, "FORMS", 2)
    model, other = Model(), Model()
    assert same(model, other, [given(seed, 1, length) for seed in range(5) for length in (1, 2, 3, 4)])
    assert model.graphs.captured == len(model.recorder.tapes) == 2
    assert "4 of 20 passes replayed, by 2 graphs; 10 not: 2 forms are captured, and each takes memory; 6 not:" in str(
        model.graphs
    )
    assert [type(one) for one in model.graphs.news()] == [PassCaptured, PassCaptured, Warned]


def test_memory_that_a_graph_reads_stays_in_its_place():
    """What a model keeps between passes may be dropped from its cache; the graph would read what came in its place."""
    kept: list[torch.Tensor] = [torch.full((6,), 2.0)]
    model = Model(lambda x: x * kept[0])
    for seed in range(4):
        model.graphs.passed(given(seed))
    (form,) = model.graphs.forms.values()
    assert form.captured
    held = {one.data_ptr() for one in form.captured.outside}
    assert kept[0].untyped_storage().data_ptr() in held
    assert model.adapter.grad.untyped_storage().data_ptr() in held
    assert all(one.untyped_storage().data_ptr() in held for one in form.captured.places)
    kept.clear()
    gc.collect()
    assert torch.equal(model.graphs.passed(given(9)), Model(lambda x: x * 2.0).compute(given(9)))


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted when stream is capturing\nmore"), None])
def test_a_pass_that_cannot_be_captured_says_what_to_do(monkeypatch, error):
    model = Model()
    raised = error or torch.OutOfMemoryError("CUDA out of memory")

    def fails(work):
        raise raised

    monkeypatch.setattr(model.recorder, "capture", fails)
    for seed in range(graphs.WARM):
        model.graphs.passed(given(seed))
    expected = r"2 pictures of .* cannot be captured.*not permitted when.*\(.*speed\.graphs.*\).*= 'off'"
    with pytest.raises(ModelError if error else torch.OutOfMemoryError, match=None if error is None else "captured"):
        model.graphs.passed(given(9))
    if error:
        with pytest.raises(ModelError) as told:
            model.graphs.passed(given(9))
        assert told.value.where == "speed.graphs", expected
        assert "not permitted when stream is capturing" in str(told.value)
        assert "speed.graphs = 'off'" in str(told.value)


# -- the trainer ---------------------------------------------------------------------------------------------------


def replaying(trainer: Trainer) -> Trainer:
    trainer.graphs = Graphs(trainer.compute, Recorder(), CPU)
    return trainer


@pytest.mark.usefixtures("taped")
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("recomputes", [True, False])
def test_updates_are_the_same_to_the_bit(make_plan, make_trainer, samples, fused, recomputes):
    plan = make_plan(train={"ema": 0.9})
    plain, replayed = make_trainer(plan, noise=0.05), replaying(make_trainer(plan, noise=0.05))
    for trainer in (plain, replayed):
        trainer.adapter.fused = fused
        if recomputes:
            Recomputing(trainer.denoiser.blocks, keeps_random_state=False, count=3)
    for number in range(4):
        turns = [Turn((0,), 2 * number, 0), Turn((1,), 2 * number + 1, 0)][: 1 if number == 3 else 2]
        assert plain.update(turns, samples) == replayed.update(turns, samples)
        assert torch.equal(plain.adapter.flat, replayed.adapter.flat)
    assert plain.average is not None
    assert torch.equal(plain.average, replayed.average)
    assert str(replayed.graphs) == "3 of 7 passes replayed, by 2 graphs; 4 not: before they were captured"


@pytest.mark.usefixtures("taped")
def test_texts_of_unequal_length_go_the_plain_way_for_their_mask_is_made_in_the_pass(make_plan, make_trainer, samples):
    plan = make_plan()
    plain, replayed = make_trainer(plan, noise=0.05), replaying(make_trainer(plan, noise=0.05))
    for number in range(4):
        turns = [Turn((0, 4), 4 * number, 0), Turn((2, 2), 4 * number + 2, 0)]
        assert plain.update(turns, samples) == replayed.update(turns, samples)
    assert replayed.graphs
    assert replayed.graphs.captured == 1
    told = [one.message for one in replayed.graphs.news() if isinstance(one, Warned)]
    assert len(told) == 1
    assert "2 pictures of 8 x 8 latents, 11 tokens of text at most: a tensor is made of the host's numbers" in told[0]


@pytest.mark.usefixtures("taped")
def test_references_are_copied_too(make_plan, make_trainer, samples):
    chance = torch.Generator().manual_seed(2)
    latents = [torch.randn(16, 4, 8, generator=chance) for _ in range(6)]

    def referred(index):
        item = samples(0)
        return Item(item.latents, item.text, item.empty, (latents[index], latents[index - 1]))

    plan = make_plan()
    plain, replayed = make_trainer(plan, noise=0.05), replaying(make_trainer(plan, noise=0.05))
    for number in range(5):
        turns = [Turn((number,), number, 0)]
        assert plain.update(turns, referred) == replayed.update(turns, referred)
    assert replayed.graphs
    assert replayed.graphs.captured == 1


# -- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan_of(kit, tmp_path):
    """A plan of a short run on a toy, over pictures of two shapes in turn; captions are equally long."""
    folder = tmp_path / "seen"
    folder.mkdir()
    for number, size in enumerate([(32, 32), (64, 16), (32, 32), (64, 16)]):
        Image.new("RGB", size, (60 * number, 150, 120)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red circle", encoding="utf-8")

    def make(family: str, name: str, **tables):
        asked = {
            "family": family,
            "preset": "none",
            "name": name,
            "trigger": "sks",
            "output": str(tmp_path / "runs"),
            "model": {"source": "toy"},
            "data": [{"folder": str(folder)}],
            "lora": {"rank": 2},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"updates": 4, "accumulation": 2, "resolution": 32, "precision": "fp32"},
            "quantization": {"name": "none"},
            "sampling": {"prompts": [], "every": 0, "strengths": []},
            "validation": {"every": 0},
            "save": {"every": 0, "dtype": "fp32"},
        }
        for key, value in tables.items():
            asked[key] = {**asked.get(key, {}), **value} if isinstance(value, dict) else value
        return kit.plan(asked)

    return make


def ended(plan, events) -> tuple[list[float], torch.Tensor]:
    """The losses of a run, and the adapter of its last checkpoint."""
    losses = [one.loss for one in events if isinstance(one, UpdateFinished)]
    return losses, checkpoint.load(plan.folder, plan.settings.train.updates, CPU).adapter


RUNS = {
    "sdxl": {"train": {"caption_dropout": 0.3, "gradient_checkpointing": False}, "scheduler": {"min_snr_gamma": 5.0}},
    "qwen": {"speed": {"modulation": "table"}, "scheduler": {"timesteps": "weighted"}},
    "flux": {"variant": "schnell", "speed": {"modulation": "table"}, "train": {"gradient_checkpointing": False}},
}


@pytest.mark.usefixtures("taped")
@pytest.mark.parametrize("family", RUNS)
def test_a_run_is_the_same_to_the_bit(kit, plan_of, family, monkeypatch, of_kind):
    tables = RUNS[family]
    plans = {
        way: plan_of(family, way, **{**tables, "speed": {**tables.get("speed", {}), "graphs": way}, "save": EVERY})
        for way in ("off", "on")
    }
    plain = ended(plans["off"], list(kit.train(plans["off"])))
    monkeypatch.setattr(loop, "waits", lambda device: True)  # and losses are read late
    events = list(kit.train(plans["on"]))
    losses, adapter = ended(plans["on"], events)
    assert losses == plain[0]
    assert torch.equal(adapter, plain[1])
    captured = of_kind(events, PassCaptured)
    assert [one.graphs for one in captured] == list(range(1, len(captured) + 1))
    (note,) = (one.note for one in of_kind(events, PhaseFinished) if one.phase == "train")
    assert captured
    assert f"by {len(captured)} graph" in note
    assert not of_kind(events, Warned)


EVERY = {"every": 4}


@pytest.mark.usefixtures("taped")
def test_a_run_goes_on_to_the_same_end_with_and_without(kit, make_plan):
    tables = {"train": {"updates": 8}, "save": {"every": 4}}
    straight = make_plan(name="straight", **tables)
    wanted = ended(straight, list(kit.train(straight)))
    plan = make_plan(name="stopped", **tables, speed={"graphs": "on"})
    control, told = Control(), []
    for event in kit.train(plan, control):
        told.append(event)
        if isinstance(event, UpdateFinished) and event.update == 5:
            control.stop("lunch")
    assert isinstance(told[-1], RunStopped)
    told += kit.resume(plan.folder, changes=[Layer({"speed": {"graphs": "off"}}, "the command line")])
    losses, adapter = ended(plan, told)
    assert losses == wanted[0]
    assert torch.equal(adapter, wanted[1])


def test_where_nothing_captures_a_run_says_so_and_is_plain(kit, make_plan, of_kind):
    events = list(kit.train(make_plan(train={"updates": 1}, speed={"graphs": "on"})))
    (told,) = [one.message for one in of_kind(events, Warned)]
    assert "speed.graphs = 'on' changes nothing here: CUDA graphs are made on CUDA, and the device is" in told
    assert len(of_kind(events, UpdateFinished)) == 1


@pytest.mark.usefixtures("taped")
def test_a_model_that_drops_inputs_by_itself_is_not_captured(kit, make_plan, of_kind, monkeypatch):
    begun = Trainer.__init__

    def dropping(self, *args, **kwargs):
        begun(self, *args, **kwargs)
        self.drops = True

    monkeypatch.setattr(Trainer, "__init__", dropping)
    events = list(kit.train(make_plan(train={"updates": 4}, speed={"graphs": "on"})))
    assert "layers of the model drop" in "".join(one.message for one in of_kind(events, Warned))
    assert not of_kind(events, PassCaptured)


# -- families: what a pass asks of the host, on a device that is not the host's --------------------------------------


def abroad(kit, folder, family: str, tmp_path) -> tuple[Trainer, Item]:
    """A trainer whose model lies on torch's `meta` device, as far from the host as a GPU; and a sample."""
    room = kit.shelves.families[family]
    plan = kit.plan(
        {
            "family": family,
            "preset": "none",
            "output": str(tmp_path),
            "model": {"source": "toy"},
            "data": [{"folder": str(folder)}],
            "lora": {"rank": 2},
            "train": {"precision": "fp32", "resolution": 32},
            "scheduler": {"min_snr_gamma": 5.0} if family == "sdxl" else {},
        }
    )
    room.toy(tmp_path / "model", plan.settings.variant)
    denoiser = room.denoiser(plan, Source(tmp_path / "model", "the toy", torch.float32))
    denoiser.module.to("meta")
    adapter = attach(denoiser, plan.settings.lora, 0, torch.device("meta"))
    scheduler = kit.shelves.schedulers[plan.settings.scheduler.name].resolve()(plan.settings.scheduler, None, {})
    optimizer = torch.optim.SGD([part.group for part in adapter.parts], lr=0.1)
    trainer = Trainer(plan, denoiser, adapter, scheduler, optimizer, room.patch, torch.float32)
    config = denoiser.module.config
    if family == "sdxl":
        width, pooled = config["cross_attention_dim"], config["projection_class_embeddings_input_dim"]
        text = Text(torch.zeros(1, 7, width), (7,), torch.zeros(1, pooled - 6 * config["addition_time_embed_dim"]))
        return trainer, Item(torch.zeros(config["in_channels"], 8, 8), text)
    pooled = torch.zeros(1, config["pooled_projection_dim"]) if family == "flux" else None
    return trainer, Item(torch.zeros(16, 8, 8), Text(torch.zeros(1, 7, config["joint_attention_dim"]), (7,), pooled))


@pytest.mark.parametrize("family", ["sdxl", "qwen", "flux"])
def test_no_pass_of_a_family_asks_the_host_or_draws(kit, pictures, family, tmp_path):
    """Moves between host and device, values read, random draws: none in the objective, forward or backward."""
    trainer, item = abroad(kit, pictures, family, tmp_path)
    there = torch.device("meta")
    for number in range(2):  # in the first, models bring over what they keep
        shown = trainer.batches.of(Turn((0,), number, 0), lambda index: item)
        with Watch(there) as watch:
            one = trainer._given(shown)
            trainer.compute(Given(**{**parts(one), "share": torch.ones(1, device=there)}))
    assert not watch.obstacles
    assert watch.outside


# -- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"model": {"device": "cpu"}}, r"model\.device = 'cpu'"),
        ({"lora": {"dropout": 0.1}}, "no seed of its own"),
        ({"speed": {"offload": 2}, "train": {"gradient_checkpointing": True}}, r"speed\.offload has the weights"),
        ({"speed": {"compile": "blocks"}}, r"speed\.compile"),
        ({"speed": {"recompute": "fit"}, "train": {"gradient_checkpointing": True}}, r"speed\.recompute = 'fit'"),
        ({"train": {"gpus": 2, "sharding": "sharded"}}, "gathered anew in every pass"),
        ({"quantization": {"name": "int4", "uncorrected": True}}, r"quantization\.name = 'int4' are not known"),
    ],
)
def test_what_cannot_go_together_is_refused(make_plan, tables, says):
    tables = {**tables, "speed": {"graphs": "on", **tables.get("speed", {})}}
    with pytest.raises(ConfigError, match=rf"speed\.graphs = 'on' is not possible.*{says}"):
        make_plan(**tables)


def test_a_trained_text_encoder_is_refused(plan_of):
    with pytest.raises(ConfigError, match=r"speed\.graphs = 'on' is not possible.*text_encoder\.train"):
        plan_of("sdxl", "run", text_encoder={"train": True}, speed={"graphs": "on"})


def test_the_plan_says_which_and_why(make_plan):
    choice = make_plan().choices["speed.graphs"]
    assert (choice.value, choice.decided_by) == ("off", "lorakit")
    assert "never run on a GPU" in choice.because
    assert "model.device = 'cpu'" in make_plan(model={"device": "cpu"}).choices["speed.graphs"].because
    asked = make_plan(speed={"graphs": "on"}, train={"gradient_checkpointing": True})
    assert asked.settings.speed.graphs == "on"
    assert asked.settings.speed.recompute == "all"
    assert asked.choices["speed.recompute"].because == "a captured pass stays as it was captured"
    assert make_plan(train={"gradient_checkpointing": True}).settings.speed.recompute == "fit"
    for name in ("int8", "int8-fast"):
        assert make_plan(speed={"graphs": "on"}, quantization={"name": name}).settings.speed.graphs == "on"
    with pytest.raises(ConfigError, match=r"speed\.graphs"):
        make_plan(speed={"graphs": "auto"})


def test_int8_layers_ask_nothing_of_the_host():
    """The quantizers that say that they may be captured, and are torch's own operations."""
    from lorakit.engine.int8_fast import Int8Fast, turn

    layer = Int8Fast().convert(nn.Linear(256, 32), CPU)
    layer.turned = True
    x = torch.randn(32, 256, requires_grad=True)
    work = functools.partial(layer, x)
    work().sum().backward()
    with Watch(CPU) as watch:
        work().sum().backward()
    assert not watch.obstacles
    turn(torch.zeros(1, 256, device="meta"))
    with Watch(torch.device("meta")) as watch:
        turn(torch.zeros(1, 256, device="meta"))
    assert not watch.obstacles

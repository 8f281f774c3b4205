"""How a plan says how several GPUs hold the base, and what that is estimated to take."""

from __future__ import annotations

import pytest

from lorakit import Kit
from lorakit.config import Layer
from lorakit.errors import ConfigError
from lorakit.estimate import space
from lorakit.estimate.model import size_of

FULL = {"quantization": {"name": "none"}, "train": {"gpus": 4}}


@pytest.fixture(scope="module")
def kit() -> Kit:
    """With the families that tell what they weigh."""
    return Kit()


@pytest.fixture
def asked(pictures, tmp_path) -> dict:
    return {
        "family": "qwen",
        "preset": "none",
        "trigger": "sks",
        "output": str(tmp_path / "runs"),
        "data": [{"folder": str(pictures)}],
    }


def planned(kit, asked, *, gpu=None, memory=None, **more):
    """A plan of the published model on four GPUs in full precision, with `more` over it."""
    table = {**asked, **FULL, **more}
    return kit.plan(table, gpu=gpu, memory=memory)


def test_one_gpu_has_nothing_to_decide(kit, asked):
    assert kit.plan(asked).settings.train.sharding is None


@pytest.mark.parametrize(
    ("card", "way", "because"),
    [
        ({}, "replicated", "the base takes 27.6 GB, and no card is named or measured"),
        ({"gpu": "H100"}, "replicated", "the base takes 27.6 GB and the H100 has 80 GB"),
        ({"gpu": "4090"}, "sharded", "the base takes 27.6 GB and the RTX 4090 has 24 GB"),
        ({"memory": 16}, "sharded", "the base takes 27.6 GB and the card has 16 GB"),
        ({"memory": 28}, "sharded", "the base takes 27.6 GB and the card has 28 GB"),  # of which 1 GB is not free
    ],
)
def test_a_base_that_does_not_fit_the_known_card_is_sharded(kit, asked, card, way, because):
    choice = planned(kit, asked, **card).choices["train.sharding"]
    assert (choice.value, choice.decided_by) == (way, "lorakit")
    assert because in choice.because


def test_a_base_that_nobody_knows_the_size_of_is_whole(kit, asked):
    toy = {**asked, **FULL, "model": {"source": "toy"}}  # which is not written yet
    choice = kit.plan(toy, gpu="3060").choices["train.sharding"]
    assert choice.value == "replicated"


@pytest.mark.parametrize(
    "settings",
    [
        {"speed": {"offload": 10}},
        {"speed": {"compile": "blocks"}},
        {"speed": {"recompute": "fit"}},
        {"quantization": {"name": "int8-fast"}},
    ],
)
def test_what_a_sharded_base_does_not_go_with_is_refused_and_never_chosen(kit, asked, settings):
    table = {**settings, "train": {"gpus": 4, "sharding": "sharded"}}
    with pytest.raises(ConfigError, match=r"train\.sharding = 'sharded' is not possible") as refused:
        planned(kit, asked, **table)
    choice = planned(kit, asked, memory=8, **settings).choices["train.sharding"]
    assert choice.value == "replicated"
    assert f"it cannot be sharded: {refused.value.why}" in choice.because


@pytest.mark.parametrize("way", ["sharded", "replicated"])
def test_one_gpu_cannot_share(kit, asked, way):
    with pytest.raises(ConfigError, match=r"needs several GPUs.*--gpus.*speed\.offload"):
        kit.plan({**asked, "train": {"sharding": way}})


def test_all_blocks_recompute_unless_somebody_says_how_many(kit, asked):
    plan = planned(kit, asked, gpu="4090")
    choice = plan.choices["speed.recompute"]
    assert (choice.value, choice.because) == (
        "all",
        "all GPUs compute together, and none may begin a batch anew where its memory runs out",
    )
    assert planned(kit, asked, gpu="4090", speed={"recompute": 20}).settings.speed.recompute == 20


def test_the_way_may_change_when_a_run_goes_on_and_leaves_with_the_other_gpus(kit, asked):
    plan = kit.plan({**asked, "train": {"gpus": 2, "batch_size": 2, "sharding": "sharded"}})
    plan.folder.mkdir(parents=True)
    (plan.folder / "plan.json").write_text(plan.to_json())
    more, _ = kit.resumed(plan.folder, [Layer({"train": {"gpus": 4}}, "--gpus")])
    assert (more.settings.train.gpus, more.settings.train.sharding) == (4, "sharded")
    one, told = kit.resumed(plan.folder, [Layer({"train": {"gpus": 1}}, "--gpus")])
    assert one.settings.train.sharding is None
    assert "train.sharding = None, was 'sharded'" in told
    whole, _ = kit.resumed(plan.folder, [Layer({"train": {"sharding": "replicated"}}, "--set")])
    assert whole.settings.train.sharding == "replicated"


# -- the estimate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "blocks"), [("qwen", 60), ("flux", 57)])
@pytest.mark.parametrize("gpus", [2, 8])
def test_a_card_holds_its_part_of_the_blocks_and_what_is_gathered(kit, asked, family, blocks, gpus):
    def of(way):
        table = {**asked, "family": family, **FULL, "train": {"gpus": gpus, "sharding": way}}
        plan = kit.plan(table)
        return plan, kit.estimate(plan, gpu="H100").chosen

    (_, whole), (plan, part) = of("replicated"), of("sharded")
    size = size_of(plan, kit.shelves.families[family])
    divided = space.shared_out(plan, size, kit.shelves.families[family], whole.base)
    assert 0.5 * whole.base < divided < whole.base
    largest = divided * size.largest_block / size.quantizable
    assert divided / blocks <= largest * 1.0001 < 3 * divided / blocks
    assert part.base == pytest.approx(whole.base - divided + divided / gpus + 3 * largest)
    assert part.gathered == pytest.approx(2 * divided * (gpus - 1) / gpus)
    assert (whole.gathered, part.adapter, part.activations) == (0, whole.adapter, whole.activations)


def test_what_stays_whole_is_estimated_whole(kit, asked):
    plan = planned(kit, asked, gpu="4090")
    fast = {one.quantization: one for one in kit.estimate(plan, gpu="4090").memory}["int8-fast"]
    alone = {one.quantization: one for one in kit.estimate(kit.plan(asked), gpu="4090").memory}
    assert (fast.base, fast.gathered) == (alone["int8-fast"].base, 0)


def test_gathering_takes_as_long_as_it_does_where_computing_is_shorter(kit, asked):
    """Bytes by a link of 31.5 GB/s, of which 0.65 are taken; nothing else of the update is so long."""
    plan = planned(kit, asked, train={"gpus": 4, "sharding": "sharded", "accumulation": 1})
    made = kit.estimate(plan, gpu="4090")
    assert made.duration.update >= made.chosen.gathered / (31.5e9 * 0.65)
    whole = planned(kit, asked, train={"gpus": 4, "sharding": "replicated", "accumulation": 1})
    assert kit.estimate(whole, gpu="4090").duration.update < made.duration.update


def test_a_plan_says_what_comes_to_each_gpu_and_what_would_help(kit, asked):
    from lorakit.estimate.words import lines

    plan = planned(kit, asked, gpu="4090")
    told = " ".join(" ".join(lines(plan, kit.estimate(plan, gpu="4090"))).split())
    assert "each has 1/4 of every block; 40.8 GB come to each in a batch" in told
    apart = {"text_encoder": {"device": "cpu"}}  # where it fits no card
    whole = planned(kit, asked, train={"gpus": 4, "sharding": "replicated"}, **apart)
    (problem,) = [one.message for one in kit.estimate(whole, memory=4).problems if "does not fit" in one.message]
    assert "train.sharding = 'sharded'" in problem

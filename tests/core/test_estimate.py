"""What plans will take: memory, time, disk, and what is wrong with that."""

import json
from dataclasses import replace

import pytest

from lorakit import Kit, Plan
from lorakit.cli import run
from lorakit.errors import ConfigError
from lorakit.estimate import cards, rates, work
from lorakit.estimate.savings import savings
from lorakit.estimate.words import lines
from lorakit.sizes import Tokens
from lorakit_qwen.size import size
from tests.pictures import picture


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def plan(tmp_path):
    """A plan over pictures of 1024 pixels, with settings over it."""
    folder = tmp_path / "pictures"
    for number in range(4):
        picture(folder / f"{number}.png", (1024, 1024), caption="a cat on a red sofa, number 1")

    def make(**tables):
        asked = {
            "family": "qwen",
            "trigger": "sks",
            "output": str(tmp_path / "runs"),
            "data": [{"folder": str(folder)}],
        }
        return Kit().plan({**asked, **tables})

    return make


def estimated(plan, **about):
    return Kit().estimate(plan, **about)


def test_memory_of_the_published_model(plan):
    """The figures of the README, with every layer on the GPU and with modulation in host memory."""
    made, tabled = estimated(plan(speed={"modulation": "layers"}), gpu="4090"), estimated(plan(), gpu="4090")
    held, less = ({one.quantization: one for one in each.memory} for each in (made, tabled))
    assert held["none"].base == pytest.approx(40.9e9, rel=0.005)
    assert less["none"].base == pytest.approx(27.3e9, rel=0.01)  # and 0.3 GB of answers for the batches ahead
    assert held["int8"].base == pytest.approx(20.5e9, rel=0.005)
    assert less["int8"].base == pytest.approx(13.7e9, rel=0.025)
    assert held["int8"].training == pytest.approx(25e9, rel=0.02)
    assert held["int8"].text == pytest.approx(17.6e9, rel=0.01)
    assert made.file == pytest.approx(212e6, rel=0.01)
    assert [made.fits(one) for one in made.memory] == [False, False, False, True, True]
    assert [tabled.fits(one) for one in tabled.memory] == [False, True, True, True, True]
    assert any("int8 does not fit 24 GB" in one.message for one in made.problems)


def test_what_changes_memory_and_what_does_not(plan):
    usual = estimated(plan()).chosen
    assert estimated(plan(train={"accumulation": 16})).chosen == usual
    assert estimated(plan(train={"batch_size": 2})).chosen.activations == 2 * usual.activations
    assert estimated(plan(train={"gradient_checkpointing": False})).chosen.activations > 10 * usual.activations
    assert estimated(plan(optimizer={"name": "adamw"})).chosen.adapter == pytest.approx(usual.adapter * 16 / 10.03)
    assert estimated(plan(lora={"rank": 32})).trained == 2 * estimated(plan()).trained


def test_time_is_that_of_the_work(plan):
    one = estimated(plan(train={"epochs": 1}), gpu="L40S").duration
    ten = estimated(plan(train={"epochs": 10}), gpu="L40S").duration
    assert ten.floor == pytest.approx(10 * one.floor)
    assert one.update_floor < one.update < 6 * one.update_floor
    assert estimated(plan(), gpu="H100").duration.expected < estimated(plan(), gpu="L40S").duration.expected


def test_hours_under_the_floor_are_told(plan):
    short = estimated(plan(train={"epochs": 1000}), gpu="L40S", hours=0.5).problems
    assert any("under the floor" in one.message and "L40S" in one.message for one in short)
    assert not estimated(plan(train={"epochs": 1}), gpu="L40S", hours=50).problems


PUBLISHED = [  # card, seconds, tokens, batch, rank: see lorakit.estimate.rates.SLACK
    ("5090", 5.39, Tokens(image=83 * 83, text=64), 1, 64),
    ("RTX 6000 Ada", 6.6, Tokens(image=83 * 83, text=64), 1, 16),
    ("A100-80", 14.7, Tokens(image=4096, reference=4096, text=266), 2, 16),
]


@pytest.mark.parametrize(("card", "took", "tokens", "batch", "rank"), PUBLISHED)
def test_published_runs_are_expected_within_a_quarter(plan, card, took, tokens, batch, rank):
    fp8 = replace(Kit().shelves.quantizers["int8"], restoring=3)
    made = plan(lora={"rank": rank})
    expected = work.seconds(made, size({}), tokens, batch, rates.of_card(cards.find(card)), fp8)
    assert expected == pytest.approx(took, rel=0.25)


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-PCIE-40GB", "A100-40"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA GeForce RTX 3060 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("AMD EPYC, 2 threads", None),
    ],
)
def test_drivers_names_of_cards(device, card):
    found = cards.of_device(device)
    assert (found and found.name) == card


def test_a_card_that_nobody_knows():
    assert cards.find("rtx-4090") == cards.find("4090")
    with pytest.raises(ConfigError, match=r"'4099'.*RTX 4090.*--memory"):
        cards.find("4099")


def test_measured_rates_are_used_and_said_so(plan):
    known = replace(rates.of_card(cards.find("4090")), name="NVIDIA GeForce RTX 4090", slack=1.0, measured="2026-01-02")
    file = rates.file_of(known.name)
    file.parent.mkdir(parents=True)
    file.write_text(rates.to_json(known))
    assert rates.read(file) == known == rates.here() == rates.named("4090") == rates.of_device(known.name)
    made = estimated(plan())
    assert made.measured
    assert "measured by lorakit calibrate on 2026-01-02" in " ".join(lines(plan(), made)).replace("  ", " ")
    file.write_text("{")
    assert rates.here() is None


def test_the_toy_is_estimated_by_its_own_size(plan):
    made = estimated(plan(preset="toy", train={"resolution": 48, "updates": 10}))
    assert made.parameters < 3_000_000
    assert made.tokens.image == 36
    assert made.disk.download == 0


def test_no_size_no_estimate(kit, asked):
    assert kit.estimate(kit.plan(asked)) is None


def test_the_lines_fit_eighty_columns(plan):
    made = estimated(plan(), gpu="L40S", price=0.89)
    assert max(len(f"# {line}") for line in lines(plan(), made)) <= 80


def test_json_holds_the_estimate_and_reads_back(plan, tmp_path, capsys):
    arguments = ["--family", "qwen", "--trigger", "sks", "--data", tmp_path / "pictures", "--gpu", "H100", "--json"]
    plan()
    assert run(["plan", *map(str, arguments)]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["estimate"]["duration"]["floor"] > 0
    assert Plan.from_json(text).settings.family == "qwen"


@pytest.mark.parametrize("option", ["--price", "--hours"])
def test_money_and_hours_need_a_device(plan, tmp_path, option, capsys):
    plan()
    arguments = ["plan", "--family", "qwen", "--trigger", "sks", "--data", str(tmp_path / "pictures"), option, "5"]
    assert run(arguments) == 2
    assert "lorakit calibrate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("train", "batch_size", 1),
        ("train", "resolution", 768),
        ("train", "gradient_checkpointing", True),
        ("quantization", "name", "int8"),
        ("lora", "rank", 16),
    ],
)
def test_what_a_change_saves_is_what_a_plan_with_it_takes_less(plan, section, name, value):
    given = {
        "train": {"batch_size": 2, "gradient_checkpointing": False},
        "quantization": {"name": "none"},
        "lora": {"rank": 64},
    }
    before = plan(**given)
    after = plan(**{**given, section: {**given[section], name: value}})
    saved = savings(before, Kit().shelves.families["qwen"], Kit().shelves)({section: {name: value}})
    meant = estimated(before).chosen.training - estimated(after).chosen.training
    assert meant > 0
    assert saved == pytest.approx(meant, rel=0.01)


def test_blocks_that_wait_take_the_host_s_memory_and_time_to_travel(plan):
    """Half of 60 blocks: two of them lie on the GPU while they are used, and a batch takes no less than they travel."""
    asked = {"quantization": {"name": "none"}}
    here, away = (estimated(plan(**asked, speed={"offload": count}), gpu="4090") for count in (0, 30))
    block = 27e9 / 60
    assert here.chosen.base - away.chosen.base == pytest.approx(28 * block, rel=0.02)
    assert away.chosen.away == pytest.approx(30 * block, rel=0.02)
    assert away.host > here.host
    assert away.duration.update >= here.duration.update
    least = estimated(plan(**asked, speed={"offload": 60}, train={"resolution": 256}), gpu="4090").duration.update
    assert least == pytest.approx(4 * 2 * 27e9 / work.COPY, rel=0.02)  # accumulation of 4, there and back again


def test_where_nothing_fits_waiting_blocks_are_advised(plan):
    made = estimated(plan(sampling={"every": 0, "strengths": []}), memory=6.0)
    assert not any("speed.offload" in one.message for one in made.problems)  # text comes first
    assert any("text_encoder.device = 'cpu'" in one.message for one in made.problems)
    asked = {"text_encoder": {"device": "cpu"}, "sampling": {"every": 0, "strengths": []}}
    made = estimated(plan(**asked), memory=6.0)
    assert made.chosen.text == pytest.approx(1e9)  # the context alone
    assert any("speed.offload" in one.message for one in made.problems)
    made = estimated(plan(sampling={"every": 0, "strengths": []}, lora={"rank": 512}), memory=18.0)
    assert any("speed.offload" in one.message for one in made.problems), [one.message for one in made.problems]

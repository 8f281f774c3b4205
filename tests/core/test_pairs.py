"""Reference pictures: which belong to which picture, how many may, and at which sizes they are seen."""

import ast
import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit import Recipe, Variant
from lorakit.buckets import Shape
from lorakit.dataset import Bucket, Sizing, index
from lorakit.errors import ConfigError, DataError
from lorakit.order import batches_per_epoch, epoch
from lorakit.plan import Plan
from lorakit.planned import PlannedData
from tests.core.fake import Fake, make_kit
from tests.pictures import picture


class Editing(Fake):
    """The fake family with variants that take references: one, or several."""

    def __init__(self) -> None:
        about = {"pipeline": "FakePipeline", "architecture": "fake/lora", "resolution": 64}
        one = Variant(source="nobody/one", references=1, reference_resolution=96, **about)
        several = Variant(source="nobody/several", references=3, text_reference_resolution=48, **about)
        self.variants = {**Fake.variants, "one": one, "several": several}


FAMILY = Editing()


def sizing(most=3, side=64):
    return Sizing(16, most, lambda size: FAMILY.reference_shape(size, side))


def read(folder=None, most=3, **given):
    data = PlannedData(folder=folder and str(folder), trigger="sks", resolution=64, **given)
    return index([data], sizing(most))


def refusal(*arguments, **given):
    with pytest.raises(DataError) as caught:
        read(*arguments, **given)
    return str(caught.value)


@pytest.fixture
def folders(tmp_path):
    """(folder of pictures, folder of references), filled by name."""

    def make(names, references):
        for name in names:
            picture(tmp_path / "targets" / name)
        for name in references:
            picture(tmp_path / "references" / name, (80, 48))
        return tmp_path / "targets", str(tmp_path / "references")

    return make


def seen(dataset):
    return {one.path.name: [reference.path.name for reference in one.references] for one in dataset.samples}


# -- by name -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "references", "matched"),
    [
        (["a.png"], ["a.png"], {"a.png": ["a.png"]}),
        (["a.png"], ["a.jpg"], {"a.png": ["a.jpg"]}),
        (["a.png"], ["a_1.png", "a_2.png"], {"a.png": ["a_1.png", "a_2.png"]}),
        (["a.png"], ["a_2.png", "a_10.png"], {"a.png": ["a_2.png", "a_10.png"]}),  # by number, not by letter
        (["a_1.png"], ["a_1.png"], {"a_1.png": ["a_1.png"]}),
        (["a_1.png"], ["a_1_1.png", "a_1_2.png"], {"a_1.png": ["a_1_1.png", "a_1_2.png"]}),
        (["a.png", "a_1.png"], ["a_1.png", "a_2.png"], {"a.png": ["a_2.png"], "a_1.png": ["a_1.png"]}),
        (
            ["0.png", "1.png", "2.png", "3.png"],
            ["1.png", "2_1.png", "2_2.png", "3_1.png", "3_2.png", "3_3.png"],
            {"0.png": [], "1.png": ["1.png"], "2.png": ["2_1.png", "2_2.png"], "3.png": [f"3_{n}.png" for n in "123"]},
        ),
    ],
)
def test_references_bear_their_pictures_name(folders, targets, references, matched):
    folder, beside = folders(targets, references)
    assert seen(read(folder, references=beside)) == matched


def test_references_of_all_sub_folders_lie_in_one(tmp_path):
    for name in ("40_maya/a.png", "20_bench/b.png"):
        picture(tmp_path / "targets" / name)
    for name in ("a.png", "b.png"):
        picture(tmp_path / "references" / name)
    dataset = read(tmp_path / "targets", references=str(tmp_path / "references"))
    assert seen(dataset) == {"a.png": ["a.png"], "b.png": ["b.png"]}
    assert dataset.passes == 60


def test_a_reference_of_no_picture_is_named(folders):
    folder, beside = folders(["a.png"], ["a.png", "b.png", "a_x.png"])
    message = refusal(folder, references=beside)
    assert "2 of the reference pictures" in message
    assert "a_x.png; b.png" in message
    assert "data.references" in message


def test_a_missing_folder_of_references(folders):
    folder, _ = folders(["a.png"], [])
    assert "there is no folder nowhere" in refusal(folder, references="nowhere")


def test_a_broken_reference_is_named(folders, tmp_path):
    folder, beside = folders(["a.png"], ["a_1.png"])
    (tmp_path / "references" / "a_1.png").write_text("no picture")
    assert "a_1.png (not a picture)" in refusal(folder, references=beside)


# -- by list -----------------------------------------------------------------------------------------------------


@pytest.fixture
def write_list(tmp_path):
    """A list of these lines, beside pictures a, b, c, and references r1, r2."""

    def write(*lines):
        for name in ("a", "b", "c"):
            picture(tmp_path / f"{name}.png", caption=f"beside {name}")
        for name in ("r1", "r2"):
            picture(tmp_path / "seen" / f"{name}.png", (80, 48))
        file = tmp_path / "pairs.jsonl"
        file.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines), encoding="utf-8")
        return file

    return write


def read_list(file, **given):
    return read(list=str(file), **given)


def list_refusal(file):
    with pytest.raises(DataError) as caught:
        read_list(file)
    return str(caught.value)


def test_a_list_names_targets_captions_and_references(write_list, tmp_path):
    file = write_list(
        {"target": "a.png", "caption": " a  hat\n on ", "references": ["seen/r1.png", "seen/r2.png"]},
        "",
        {"target": "b.png", "references": []},
        {"file_name": str(tmp_path / "c.png"), "text": "sks, red", "references": ["seen/r2.png"]},
    )
    dataset = read_list(file, repeats=3)
    assert seen(dataset) == {"a.png": ["r1.png", "r2.png"], "b.png": [], "c.png": ["r2.png"]}
    assert [one.caption for one in dataset.samples] == ["sks, a hat on", "sks, beside b", "sks, red"]
    assert dataset.samples[0].references[0].path == tmp_path / "seen" / "r1.png"
    assert dataset.passes == 9


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"target": "a.png", "control": "b.png"}, "unknown key control; known are target, caption, references"),
        ({"caption": "a hat"}, "names no target"),
        ({"target": 3}, "target and caption are texts"),
        ({"target": "a.png", "caption": ["a"]}, "target and caption are texts"),
        ({"target": "a.png", "references": "b.png"}, "references are a list"),
        ({"target": "a.png", "references": [1]}, "references are a list"),
        (["a.png"], "not a table"),
        ('{"target": "a.png"', "delimiter"),
    ],
)
def test_a_wrong_line_is_named_with_the_right_form(write_list, line, says):
    message = list_refusal(write_list({"target": "a.png"}, line))
    assert says in message
    assert "line 2 of" in message
    assert '{"target": "a.png"' in message


def test_a_list_that_is_not_there_or_empty(write_list, tmp_path):
    assert "there is no list" in list_refusal(tmp_path / "nothing.jsonl")
    assert "is empty" in list_refusal(write_list("", " "))


def test_a_target_of_two_lines_is_refused(write_list):
    message = list_refusal(write_list({"target": "a.png"}, {"target": "seen/../a.png", "caption": "again"}))
    assert "1 picture named more than once" in message


def test_pictures_that_a_list_names_in_vain_are_named_together(write_list):
    message = list_refusal(write_list({"target": "x.png"}, {"target": "a.png", "references": ["seen/y.png"]}))
    assert "2 pictures cannot be used" in message
    assert "x.png" in message
    assert "y.png" in message


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "either folder or list"),
        ({"folder": "a", "list": "b.jsonl"}, "either folder or list"),
        ({"list": "b.jsonl", "references": "c"}, "a list names its references itself"),
    ],
)
def test_a_folder_or_a_list_and_not_both(kit, table, says):
    with pytest.raises(ConfigError, match=says):
        kit.request({"family": "fake", "data": [table]})


# -- how many ----------------------------------------------------------------------------------------------------


def test_more_than_the_variant_takes(folders):
    folder, beside = folders(["a.png", "b.png"], ["a_1.png", "a_2.png", "b.png"])
    message = refusal(folder, most=1, references=beside)
    assert "1 picture with too many references" in message
    assert "a.png (2)" in message
    assert "this variant takes at most 1 reference picture" in message


def test_a_variant_without_references(folders):
    folder, beside = folders(["a.png"], ["a.png"])
    assert "this variant takes no reference pictures" in refusal(folder, most=0, references=beside)


def test_a_single_reference_is_for_all_or_for_none(folders):
    folder, beside = folders(["a.png", "b.png"], ["a.png"])
    message = refusal(folder, most=1, references=beside)
    assert "1 picture without a reference" in message
    assert "b.png" in message
    assert seen(read(folder, most=3, references=beside)) == {"a.png": ["a.png"], "b.png": []}
    assert seen(read(folder, most=1)) == {"a.png": [], "b.png": []}


# -- sizes and buckets -------------------------------------------------------------------------------------------


def test_batches_hold_one_shape_of_pictures_and_of_each_reference(tmp_path):
    sizes = {"a": [(64, 64)], "b": [(64, 64)], "c": [(96, 32)], "d": [(64, 64), (96, 32)], "e": [(96, 32), (64, 64)]}
    picture(tmp_path / "targets" / "f.png")
    for name, some in sizes.items():
        picture(tmp_path / "targets" / f"{name}.png")
        for number, size in enumerate(some, 1):
            picture(tmp_path / "references" / f"{name}_{number}.png", size)
    dataset = read(tmp_path / "targets", references=str(tmp_path / "references"))
    square, wide = Shape(64, 64), Shape(96, 32)
    assert dataset.buckets() == {
        Bucket(square): 1,
        Bucket(square, (square,)): 2,
        Bucket(square, (square, wide)): 1,
        Bucket(square, (wide,)): 1,
        Bucket(square, (wide, square)): 1,
    }
    assert batches_per_epoch(dataset, 4) == 5
    for batch in epoch(dataset, 4, 0, 0):
        assert len({dataset.samples[number].bucket for number in batch}) == 1


def published_dimensions():
    """diffusers' calculate_dimensions, without importing diffusers."""
    file = Path(find_spec("diffusers").origin).parent / "pipelines/qwenimage/pipeline_qwenimage_edit_plus.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    [function] = [one for one in tree.body if getattr(one, "name", "") == "calculate_dimensions"]
    names = {"math": math}
    exec(compile(ast.Module([function], []), str(file), "exec"), names)
    return names["calculate_dimensions"]


DIMENSIONS = published_dimensions()


@given(st.integers(16, 6000), st.integers(16, 6000), st.sampled_from([64, 112, 384, 512, 1024, 1328]))
def test_shapes_of_references_are_diffusers(width, height, side):
    shape = FAMILY.reference_shape(Shape(width, height), side)
    expected = DIMENSIONS(side * side, width / height)
    assert (shape.width, shape.height) == tuple(max(32, one) for one in expected)


@pytest.mark.parametrize(
    ("variant", "given", "shapes"),
    [
        ("one", {}, (Shape(96, 96), None)),
        ("several", {}, (Shape(1024, 1024), Shape(64, 64))),  # 48 is nearer to 64 than to 32
        ("several", {"train": {"reference_resolution": 128}}, (Shape(128, 128), Shape(64, 64))),
        ("several", {"text_encoder": {"reference_resolution": 32}}, (Shape(1024, 1024), Shape(32, 32))),
    ],
)
def test_sizes_are_the_variants_unless_asked_for(tmp_path, variant, given, shapes):
    settings = plan_of(tmp_path, variant=variant, **given).settings
    areas = settings.train.reference_resolution, settings.text_encoder.reference_resolution
    about = FAMILY.sizing(variant, *areas)
    square = Shape(500, 500)
    assert (about.shape(square), about.text_shape(square) if about.text_shape else None) == shapes


# -- the plan ----------------------------------------------------------------------------------------------------


def plan_of(folder, **given):
    """A plan over two pictures with a reference each."""
    for name in ("a", "b"):
        picture(folder / "targets" / f"{name}.png", caption=f"a cat, {name}")
        picture(folder / "references" / f"{name}.png", (80, 48))
    data = {"folder": str(folder / "targets"), "references": str(folder / "references")}
    return make_kit(FAMILY).plan({"family": "fake", "variant": "several", "trigger": "sks", "data": [data], **given})


def test_who_decided_the_sizes(tmp_path):
    choices = plan_of(tmp_path, train={"reference_resolution": 128}).choices
    assert choices["train.reference_resolution"].decided_by == "the call"
    assert choices["text_encoder.reference_resolution"].decided_by == "family fake"
    assert choices["text_encoder.reference_resolution"].value == 48


def test_a_size_without_effect_is_said(kit, asked):
    plan = kit.plan({**asked, "train": {"reference_resolution": 64}})
    assert any("takes no reference pictures" in problem.message for problem in plan.problems)
    assert not any("takes no reference pictures" in problem.message for problem in kit.plan(asked).problems)


def test_previews_draw_the_first_captions_with_their_references(tmp_path):
    sampling = plan_of(tmp_path).settings.sampling
    assert sampling.prompts == ("sks, a cat, a", "sks, a cat, b")
    assert sampling.references == tuple((str(tmp_path / "references" / f"{name}.png"),) for name in "ab")


def test_a_prompt_of_ones_own_has_no_reference_unless_named(tmp_path, monkeypatch):
    assert plan_of(tmp_path, sampling={"prompts": ["a dog"]}).settings.sampling.references == ((),)
    monkeypatch.chdir(tmp_path)
    named = {"prompts": ["a dog", "a cat"], "references": [[], ["references/a.png", "references/b.png"]]}
    found = plan_of(tmp_path, sampling=named).settings.sampling.references
    assert found == ((), tuple(str(tmp_path / "references" / f"{name}.png") for name in "ab"))


@pytest.mark.parametrize(
    ("references", "says"),
    [
        ([[]], "1 lists, and sampling.prompts has 2 prompts"),
        ([[], [], []], "3 lists, and sampling.prompts has 2 prompts"),
        ([["a"] * 4, []], "4 pictures for one prompt.*takes 3"),
    ],
)
def test_references_of_previews_that_do_not_fit(tmp_path, references, says):
    with pytest.raises(ConfigError, match=says):
        plan_of(tmp_path, sampling={"prompts": ["x", "y"], "references": references})
    with pytest.raises(ConfigError, match=says):
        plan_of(tmp_path, sampling={"references": references})  # of the first captions, which are two


def test_a_missing_reference_of_a_preview_is_found_while_planning(tmp_path):
    with pytest.raises(DataError, match=r"cannot be used: .*nothing\.png.*sampling\.references"):
        plan_of(tmp_path, sampling={"prompts": ["x"], "references": [["nothing.png"]]})


def test_the_plan_counts_references_and_comes_back_from_json(tmp_path):
    plan = plan_of(tmp_path)
    assert plan.arithmetic.references == 2
    assert plan.arithmetic.buckets == (("64x64 seeing 1312x800", 2),)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.settings.sampling.references == plan.settings.sampling.references


# -- recipes -----------------------------------------------------------------------------------------------------


class Cooking(Fake):
    """The fake family with two recipes and a preset."""

    default_preset = "usual"
    recipes = {  # noqa: RUF012
        "card": Recipe(guidance=4.0, steps=40, because="the card"),
        "fast": Recipe(guidance=2.5, steps=20, shift=3.0, because="somebody"),
    }


@pytest.fixture
def cook(asked, tmp_path):
    def make(**given):
        kit = make_kit(Cooking())
        file = tmp_path / "usual.toml"
        file.write_text('family = "fake"\n[sampling]\nguidance = 3.5\nsteps = 28\n')
        kit.shelves.presets.add("fake/usual", file, "test")
        return kit.plan({**asked, **given})

    return make


def test_a_recipe_lies_above_the_preset_and_below_the_user(cook):
    plan = cook(sampling={"recipe": "fast", "steps": 12})
    sampling = plan.settings.sampling
    assert (sampling.recipe, sampling.guidance, sampling.steps, sampling.shift) == ("fast", 2.5, 12, 3.0)
    assert plan.choices["sampling.guidance"].decided_by == "recipe fast, named in the call"
    assert plan.choices["sampling.steps"].decided_by == "the call"
    assert plan.choices["sampling.recipe"].decided_by == "the call"


def test_a_recipe_without_a_shift_leaves_the_formula(cook):
    assert cook(sampling={"recipe": "card"}).settings.sampling.shift is None
    assert cook(sampling={"recipe": "card", "shift": 2.2}).settings.sampling.shift == 2.2


def test_no_recipe_is_the_preset(cook):
    sampling = cook().settings.sampling
    assert (sampling.recipe, sampling.guidance, sampling.steps) == (None, 3.5, 28)


@pytest.mark.parametrize("name", ["crad", 3])
def test_an_unknown_recipe_names_the_known(cook, name):
    with pytest.raises(ConfigError, match=r"no sampling recipe.*the call.*card, fast"):
        cook(sampling={"recipe": name})


def test_a_family_without_recipes_says_so(kit, asked):
    with pytest.raises(ConfigError, match=r"Fake has no sampling recipe 'card'.*none"):
        kit.plan({**asked, "sampling": {"recipe": "card"}})

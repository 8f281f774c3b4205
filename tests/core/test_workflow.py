"""Filling in a family's ComfyUI workflow templates."""

import json
from dataclasses import replace

import pytest

from lorakit import workflow
from lorakit.errors import ConfigError, PluginError
from lorakit.family import FlowShift
from tests.core.fake import Fake, make_kit

SAMPLER = {"class_type": "KSampler", "inputs": {"seed": "{seed}", "steps": "{steps}", "sampler_name": "euler"}}


@pytest.fixture
def made(tmp_path):
    """The workflow that a template of one variant gives, filled for a plan."""

    def make(nodes, name="small.plain", shift=None, **tables):
        text = nodes if isinstance(nodes, str) else json.dumps(nodes)
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
        variants = {name: replace(about, flow_shift=shift) for name, about in Fake.variants.items()}
        family = type("Drawn", (Fake,), {"workflows": tmp_path, "variants": variants})()
        plan = make_kit(family).plan({"family": "fake", "trigger": "sks", "name": "run", **tables})
        told = [problem.message for problem in plan.errors if "workflow" in problem.message]
        written = workflow.written(plan, family)
        return written and json.loads(written), told

    return make


def node(**inputs):
    return {"class_type": "Node", "inputs": inputs}


def inputs(nodes, number="1"):
    return nodes[number]["inputs"]


def test_a_placeholder_alone_gives_the_value_and_within_text_its_words(made):
    nodes, _ = made({"1": node(seed="{seed}", prefix="lorakit/{name}-{seed}", fixed=1, link=["1", 0])})
    assert inputs(nodes) == {"seed": 42, "prefix": "lorakit/run-42", "fixed": 1, "link": ["1", 0]}


def test_braces_of_a_prompt_are_no_placeholders(made):
    nodes, _ = made({"1": node(text="{prompt}, {name}")}, sampling={"prompts": ["sks {seed} \"quoted\" 'é'"]})
    assert inputs(nodes)["text"] == "sks {seed} \"quoted\" 'é', run"


@pytest.mark.parametrize(
    ("prompts", "prompt", "seed"),
    [
        (["a dog", "SKS on a beach", "sks"], "SKS on a beach", 43),
        (["a dog", "a cat"], "sks, a dog", 42),
        ([], "sks", 42),
    ],
)
def test_the_prompt_is_the_first_that_holds_the_trigger_with_its_own_seed(made, prompts, prompt, seed):
    nodes, _ = made({"1": node(text="{prompt}", seed="{seed}")}, sampling={"prompts": prompts})
    assert inputs(nodes) == {"text": prompt, "seed": seed}


def test_what_is_not_there_is_left_out_with_the_inputs_that_link_to_it(tmp_path):
    given = {"reference1": "a.png", "reference2": None}
    nodes = {
        "1": node(image="{reference1}"),
        "2": node(image="{reference2}"),
        "3": node(image1=["1", 0], image2=["2", 0]),
    }
    left = workflow.fill(nodes, given, {}, tmp_path)
    assert left == {"1": node(image="a.png"), "3": node(image1=["1", 0])}


def test_the_template_is_that_of_the_variant_and_its_prompt_template(made):
    assert made({"1": node(a=1)}, "large")[0] is None  # of another variant
    assert inputs(made({"1": node(a=2)}, "small")[0]) == {"a": 2}
    assert inputs(made({"1": node(a=3)}, "small.plain")[0]) == {"a": 3}  # nearer than the variant's
    assert inputs(made({"1": node(a=4)}, "small.fancy", text_encoder={"template": "fancy"})[0]) == {"a": 4}


def test_a_family_without_templates_writes_none():
    kit = make_kit()
    assert workflow.written(kit.plan({"family": "fake"}), kit.shelves.families["fake"]) is None


def test_the_shift_is_the_fixed_one_or_the_familys_and_absent_where_there_is_none(made):
    shift, nodes = FlowShift(), {"1": node(shift="{shift}")}
    sized = {"width": 64, "height": 128}
    assert inputs(made(nodes, shift=shift, sampling=sized)[0]) == {"shift": round(shift.at(4 * 8), 2)}
    assert inputs(made(nodes, shift=shift, sampling={"shift": 2.5})[0]) == {"shift": 2.5}
    with pytest.raises(PluginError, match=r"placeholder \{shift\}.*Known are guidance, height, lora"):
        made(nodes)


@pytest.mark.parametrize("text", ["{", "[1]", '{"1": {"inputs": {}}}', '{"1": {"class_type": "A"}}', '{"1": 3}'])
def test_a_broken_template_is_its_plugins_fault(made, text):
    with pytest.raises(PluginError, match=r"small\.plain\.json is not a workflow in ComfyUI's API format"):
        made(text)


# -- save.workflow -----------------------------------------------------------------------------------------------


def test_fixed_inputs_are_the_users_to_set(made):
    nodes, told = made({"1": SAMPLER, "2": node(steps=3)}, save={"workflow": {"sampler_name": "heun", "steps": 9}})
    assert told == []
    assert inputs(nodes) == {"seed": 42, "steps": inputs(nodes)["steps"], "sampler_name": "heun"}
    assert inputs(nodes)["steps"] != 9  # the run's
    assert inputs(nodes, "2") == {"steps": 9}


def test_inputs_that_are_not_there_or_not_fixed_are_refused(made):
    _, told = made({"1": SAMPLER}, save={"workflow": {"steps": 9, "sampler": "heun"}})
    assert told == [
        "save.workflow names 2 inputs that the workflow does not have or that the run itself decides: sampler, steps. "
        "Known are sampler_name"
    ]
    _, told = made({"1": SAMPLER}, variant="large", save={"workflow": {"steps": 9}})
    assert told == ["save.workflow has no effect: Fake brings no ComfyUI workflow for this plan"]


def test_they_may_be_said_on_the_command_line_and_are_in_the_plan(kit):
    from lorakit.config import Layer, parse_set
    from lorakit.explain import to_toml

    layer = Layer({"family": "fake", **parse_set("save.workflow.unet_name=mine.safetensors")}, "--set")
    plan = kit.plan(kit.request(layer))
    assert plan.settings.save.workflow == {"unet_name": "mine.safetensors"}
    assert plan.from_json(plan.to_json()) == plan
    (line,) = [line for line in to_toml(plan) if "unet_name" in line]
    assert line.startswith('workflow.unet_name = "mine.safetensors"')
    with pytest.raises(ConfigError, match=r"save\.workflow"):
        kit.plan({"family": "fake", "save": {"workflow": {"a b": 1}}})
    with pytest.raises(ConfigError, match=r"save\.workflow"):
        kit.plan({"family": "fake", "save": {"workflow": {"a": [1]}}})

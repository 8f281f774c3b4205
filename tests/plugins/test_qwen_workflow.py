"""The exported workflow: every node as ComfyUI declares it, every value the run's own."""

import json
import math
import shutil

import pytest

from lorakit import Kit, workflow
from tests import comfyui
from tests.pictures import picture

KIT = Kit()
QWEN = KIT.shelves.families["qwen"]
NODE = {"edit": "TextEncodeQwenImageEditPlus", "text-to-image": "CLIPTextEncode"}
CASES = [
    (variant, template, count)
    for variant, about in QWEN.variants.items()
    for template in about.templates
    for count in range(about.references + 1)
]


@pytest.fixture
def plan_for(tmp_path):
    for number in range(1, 4):
        picture(tmp_path / f"seen-{number}.png")

    def make(variant, count=0, template=None, **sampling):
        asked = {"family": "qwen", "variant": variant, "trigger": "maya", "name": "maya-2", "output": str(tmp_path)}
        asked["text_encoder"] = {"template": template} if template else {}
        seen = [str(tmp_path / f"seen-{number}.png") for number in range(1, count + 1)]
        asked["sampling"] = {"prompts": ["maya, portrait"], "references": [seen], **sampling}
        return KIT.plan(asked)

    return make


def made(plan):
    return json.loads(workflow.written(plan, QWEN))


@pytest.mark.parametrize(("variant", "template", "count"), CASES)
def test_every_node_is_as_comfyui_declares_it(plan_for, variant, template, count):
    nodes = made(plan_for(variant, count, template))
    assert comfyui.faults(nodes) == []
    assert "{" not in "".join(str(value) for node in nodes.values() for value in node["inputs"].values())
    reached, rest = set(), ["12"]
    while rest:  # nothing lies about that the picture does not come from
        number = rest.pop()
        reached.add(number)
        rest += [value[0] for value in nodes[number]["inputs"].values() if isinstance(value, list)]
    assert reached == set(nodes)


@pytest.mark.parametrize(("variant", "template", "count"), CASES)
def test_text_is_read_by_the_node_that_uses_the_templates_prompt(plan_for, variant, template, count):
    nodes = made(plan_for(variant, count, template))
    wanted = NODE[template] if not count else "TextEncodeQwenImageEdit" if variant == "edit" else NODE["edit"]
    encoders = [node for node in nodes.values() if "TextEncode" in node["class_type"]]
    assert [node["class_type"] for node in encoders] == [wanted] * 2
    for node in encoders:
        links = [value for name, value in node["inputs"].items() if name.startswith("image")]
        shown = [nodes[number]["inputs"]["image"] for number, _ in links]
        assert shown == [f"seen-{number}.png" for number in range(1, count + 1)]
        assert ("vae" in node["inputs"]) == bool(count)
    methods = [node for node in nodes.values() if node["class_type"] == "FluxKontextMultiReferenceLatentMethod"]
    assert len(methods) == (2 if variant == "edit-2511" and count else 0)  # its zero_cond_t


def test_values_are_those_of_the_previews(plan_for):
    given = {"negative": "blurry", "seed": 7, "steps": 28, "guidance": 3.5, "width": 832, "height": 1248, "shift": 3.0}
    nodes = made(plan_for("image", **given))
    sampler = comfyui.of(nodes, "KSampler")
    assert {name: sampler[name] for name in ("seed", "steps", "cfg")} == {"seed": 7, "steps": 28, "cfg": 3.5}
    assert (sampler["sampler_name"], sampler["scheduler"], sampler["denoise"]) == ("euler", "simple", 1.0)
    texts = [nodes[sampler[name][0]]["inputs"]["text"] for name in ("positive", "negative")]
    assert texts == ["maya, portrait", "blurry"]
    assert comfyui.of(nodes, "ModelSamplingAuraFlow")["shift"] == 3.0
    assert comfyui.of(nodes, "EmptySD3LatentImage") == {"width": 832, "height": 1248, "batch_size": 1}
    lora = comfyui.of(nodes, "LoraLoaderModelOnly")
    assert (lora["lora_name"], lora["strength_model"]) == ("maya-2.safetensors", 1.0)
    assert comfyui.of(nodes, "SaveImage")["filename_prefix"] == "lorakit/maya-2"


def test_without_a_fixed_shift_it_is_the_familys_for_the_size(plan_for):
    def shift(**sampling):
        return comfyui.of(made(plan_for("image", **sampling)), "ModelSamplingAuraFlow")["shift"]

    assert shift() == round(math.exp(0.6935), 2) == 2.0  # 1024², as diffusers' calculate_shift has it
    assert shift(width=1328, height=1328) == 2.3
    assert shift(recipe="comfyui") == 3.0


def test_each_variant_loads_its_own_model_in_the_published_form(plan_for):
    names = {comfyui.of(made(plan_for(variant)), "UNETLoader")["unet_name"] for variant in QWEN.variants}
    assert len(names) == len(QWEN.variants)


def test_a_run_writes_it_beside_its_lora(tmp_path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (48, 48), "red").save(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "a.txt").write_text("a red square")
    asked = {"family": "qwen", "preset": "toy", "trigger": "sks", "output": str(tmp_path / "runs")}
    tables = {
        "data": [{"folder": str(tmp_path / "pictures")}],
        "train": {"updates": 1, "batch_size": 1},
        "sampling": {"every": 0, "strengths": []},
        "save": {"workflow": {"unet_name": "mine.safetensors"}},
    }
    *_, last = KIT.train(KIT.plan(asked | tables))
    beside = tmp_path / "runs" / "sks" / "sks.workflow.api.json"
    assert last.workflow == str(beside)
    nodes = json.loads(beside.read_text())
    assert comfyui.faults(nodes) == []
    assert comfyui.of(nodes, "UNETLoader")["unet_name"] == "mine.safetensors"
    assert comfyui.of(nodes, "LoraLoaderModelOnly")["lora_name"] == "sks.safetensors"
    assert (tmp_path / "runs" / "sks" / "sks.safetensors").is_file()
    shutil.rmtree(tmp_path / "runs")


def test_the_judge_finds_what_is_wrong(plan_for):
    good = made(plan_for("edit-2509", 2))

    def spoilt(number, **inputs):
        nodes = json.loads(json.dumps(good))
        nodes[number]["inputs"].update(inputs)
        return comfyui.faults(nodes)

    assert spoilt("10", sampler_name="flowmatch") == ["10 KSampler: sampler_name = 'flowmatch'"]
    assert spoilt("10", model=["2", 0]) == ["10 KSampler: model = ['2', 0]"]
    assert spoilt("10", model=["99", 0]) == ["10 KSampler: model = ['99', 0]"]
    assert spoilt("10", steps="28") == ["10 KSampler: steps = '28'"]
    assert spoilt("10", sampler="euler") == ["10 KSampler: unknown sampler"]
    lacking = {number: node for number, node in good.items() if number != "12"}
    assert comfyui.faults(lacking) == ["nothing is drawn: no output node"]

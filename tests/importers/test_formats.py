"""ai-toolkit, kohya and diffusers files, each with what is special about it."""

import json
from dataclasses import replace

import pytest
import tomli

from lorakit import FlowShift, Kit, Part, hookimpl, only
from lorakit.checks import NO_PICTURES
from lorakit.cli import run
from lorakit.errors import PluginError
from lorakit.importers.written import to_toml
from tests.core.fake import Fake, FakePlugin
from tests.docs.pages import blocks

KIT = Kit()


def given(tmp_path, name, text, kit=KIT, **how):
    file = tmp_path / name
    file.write_text(text)
    return kit.imported(file, **how)


def told(imported):
    """Lines by key; a default stands only where the file says nothing."""
    return {line.key: line for line in sorted(imported.lines, key=lambda line: line.said)}


def plans(imported, kit=KIT):
    """The written TOML, loaded and planned without its pictures, as a TOML must."""
    table = tomli.loads(to_toml(imported))
    table.pop("data", None)
    plan = kit.plan(table)
    assert [one.message for one in plan.errors] == [NO_PICTURES]
    return plan.settings


# -- ai-toolkit ----------------------------------------------------------------------------------------------


def yaml_of(**sections):
    model = {"name_or_path": "Qwen/Qwen-Image", "arch": "qwen_image"}
    process = {"type": "sd_trainer", "model": model, "train": {}, "network": {}, **sections}
    return json.dumps({"job": "extension", "config": {"name": "run", "process": [process]}})


def test_what_is_unsaid_is_what_ai_toolkit_does(tmp_path):
    table = given(tmp_path, "a.json", yaml_of(datasets=[{"folder_path": "x"}])).table
    assert table["train"]["updates"] == 1000
    assert table["train"]["caption_dropout"] == 0
    assert table["train"]["precision"] == "fp32"
    assert table["train"]["resolution"] == 512
    assert table["lora"] == {"rank": 4, "alpha": 4.0}
    assert table["optimizer"]["learning_rate"] == 1e-6
    assert table["optimizer"]["epsilon"] == 1e-6
    assert table["save"] == {"dtype": "fp16", "every": 1000, "keep": 5}
    assert table["quantization"]["name"] == "none"


@pytest.mark.parametrize(
    ("train", "updates", "accumulation", "every"),
    [
        ({"steps": 1000}, 1000, None, 100),
        ({"steps": 1000, "gradient_accumulation_steps": 4}, 250, 4, 25),
        ({"steps": 1001, "gradient_accumulation_steps": 4}, 251, 4, 25),
        ({"steps": 1000, "gradient_accumulation": 4}, 1000, 4, 100),
    ],
)
def test_two_kinds_of_accumulation(tmp_path, train, updates, accumulation, every):
    table = given(tmp_path, "a.yaml", yaml_of(train=train, sample={"sample_every": 100})).table
    assert table["train"]["updates"] == updates
    assert table["train"].get("accumulation") == accumulation
    assert table["sampling"]["every"] == every


@pytest.mark.parametrize(
    ("model", "name", "uncorrected"),
    [
        ({"quantize": True}, "int8", None),
        ({"quantize": True, "qtype": "qfloat8"}, "int8", None),
        ({"quantize": True, "quantize_dtype": "int4"}, "int4", True),
        ({"quantize": True, "qtype": "uint3|some/adapter.safetensors"}, "int4", True),
        ({"quantize": True, "qtype": "qint2"}, "int2", True),
        ({"quantize": False, "qtype": "qint8"}, "none", None),
    ],
)
def test_formats_of_the_base(tmp_path, model, name, uncorrected):
    imported = given(tmp_path, "a.yaml", yaml_of(model={"name_or_path": "Qwen/Qwen-Image", **model}))
    assert imported.table["quantization"]["name"] == name
    assert imported.table["quantization"].get("uncorrected") == uncorrected
    assert bool(imported.findings) == bool(uncorrected), "few bits without a recovery adapter are worth a word"
    assert plans(imported).quantization.name == name


def test_alpha_is_what_ai_toolkit_makes_of_it(tmp_path):
    imported = given(tmp_path, "a.yaml", yaml_of(network={"type": "lora", "linear": 32, "linear_alpha": 8}))
    assert imported.table["lora"] == {"rank": 32, "alpha": 32.0}
    assert told(imported)["network.linear_alpha"].fate == "dead"


def test_several_resolutions_and_folders(tmp_path):
    datasets = [
        {"folder_path": "a", "resolution": [512, 768, 1024], "num_repeats": 3},
        {"folder_path": "b", "resolution": 768, "caption_dropout_rate": 0.1, "control_path": ["c", "d"]},
        {"folder_path": "a", "resolution": 256},
    ]
    imported = given(tmp_path, "a.yaml", yaml_of(datasets=datasets))
    assert imported.table["data"] == [
        {"folder": "a", "repeats": 3, "resolution": 1024},
        {"folder": "b", "references": "c", "resolution": 768},
    ]
    lines = told(imported)
    assert "the largest" in lines["datasets[0].resolution"].why
    assert lines["datasets[2].folder_path"].fate == "refused"
    assert imported.table["train"]["caption_dropout"] == 0.1


def test_samples_with_references_and_prompts_with_flags(tmp_path):
    sample = {
        "samples": [{"prompt": "[trigger] in a hat", "ctrl_img": "h.png"}, {"prompt": "b --w 512 --s 3", "seed": 1}]
    }
    imported = given(tmp_path, "a.yaml", yaml_of(sample=sample, trigger_word="sks"))
    assert imported.table["sampling"]["prompts"] == ["sks in a hat", "b"]
    assert imported.table["sampling"]["references"] == [["h.png"], []]
    assert told(imported)["sample.samples[1].seed"].fate == "refused"


def test_what_would_change_the_result_is_a_note_and_no_error(tmp_path):
    train = {"train_text_encoder": True, "loss_type": "wavelet", "optimizer": "prodigy", "timestep_type": "next_sample"}
    imported = given(tmp_path, "a.yaml", yaml_of(train=train, network={"type": "lokr"}, bogus={"a": 1}))
    fates = {key: line.fate for key, line in told(imported).items() if line.fate in ("refused", "unknown", "changed")}
    assert fates == {
        "train.train_text_encoder": "refused", "train.loss_type": "refused", "train.optimizer": "changed",
        "train.timestep_type": "refused", "network.type": "refused", "bogus.a": "unknown", "network": "changed",
    }  # fmt: skip
    plans(imported)
    plan = KIT.plan(KIT.request(*imported.layers()))
    notes = [problem for problem in plan.problems if "a.yaml" in problem.message]
    assert {"train.train_text_encoder", "bogus.a"} <= {note.message.split(" = ")[0].split(": ")[-1] for note in notes}
    assert all(note.severity == "warning" for note in notes)


def test_a_value_that_no_setting_takes_is_refused_with_the_reason(tmp_path):
    imported = given(tmp_path, "a.yaml", yaml_of(train={"lr": 5, "steps": "many", "batch_size": 0}))
    lines = told(imported)
    for key in ("train.lr", "train.steps", "train.batch_size"):
        assert lines[key].fate == "refused", key
    assert "less than or equal to 1" in lines["train.lr"].why
    plans(imported)


def test_a_key_said_twice_is_not_dropped_in_silence(tmp_path):
    text = "network: {linear: 8}\nmodel: {arch: qwen_image}\ntrain:\n  lr: 1e-4\n  lr: 2e-4\n"
    imported = given(tmp_path, "a.yaml", text)
    assert imported.table["optimizer"]["learning_rate"] == 2e-4
    both = [line for line in imported.lines if line.key == "train.lr"]
    assert [(line.fate, line.line) for line in both] == [("dead", 4), ("carried", 5)]


def test_yaml_anchors_and_merges_are_read(tmp_path):
    text = "model: {arch: qwen_image}\nnetwork: &n {linear: 8}\nx: {<<: *n, linear: 9}\ntrain: {lr: 1e-4}\n"
    lines = told(given(tmp_path, "a.yaml", text))
    assert lines["network.linear"].value == "8"
    assert (lines["x.linear"].value, lines["x.linear"].fate) == ("9", "unknown")


# -- kohya ---------------------------------------------------------------------------------------------------

DATASET = """
[general]
shuffle_caption = true
keep_tokens = 1
caption_extension = ".txt"

[[datasets]]
resolution = [1024, 1024]
batch_size = 2
enable_bucket = false

  [[datasets.subsets]]
  image_dir = "pictures/40_maya"
  class_tokens = "maya_char woman"
  num_repeats = 5

  [[datasets.subsets]]
  image_dir = "reg"
  is_reg = true

  [[datasets.subsets]]
  image_dir = "20_more"
  flip_aug = true
"""

ARGUMENTS = """
[model]
pretrained_model_name_or_path = "Qwen/Qwen-Image"
[network]
network_module = "networks.lora"
network_dim = 16
[training]
max_train_steps = 2000
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.95", "d_coef=2"]
learning_rate = 1e-4
unet_lr = 5e-5
lr_scheduler = "cosine"
lr_warmup_steps = 0.1
save_every_n_steps = 500
save_last_n_steps = 1000
timestep_sampling = "sigmoid"
sigmoid_scale = 1.5
noise_offset = 0.05
mystery = 1
"""


def test_a_dataset_toml_with_its_arguments(tmp_path):
    data = tmp_path / "data.toml"
    data.write_text(DATASET)
    imported = given(tmp_path, "args.toml", ARGUMENTS, dataset=data)
    table, lines = imported.table, told(imported)
    assert table["data"] == [
        {"folder": "pictures/40_maya", "repeats": 5, "captions": "txt", "trigger": "maya_char woman"},
        {"folder": "20_more", "repeats": 1, "captions": "txt"},
    ]
    assert "data.repeats = 20" in " ".join(imported.findings), "a dataset file reads no folder names"
    assert table["train"]["resolution"] == 1024
    assert table["train"]["batch_size"] == 2
    assert table["train"]["updates"] == 2000
    assert table["optimizer"]["learning_rate"] == 5e-5
    assert lines["learning_rate"].fate == "dead"
    assert table["optimizer"]["betas"] == [0.9, 0.95]
    assert lines["optimizer_args"].fate == "refused"
    assert table["optimizer"]["warmup"] == 200
    assert table["save"]["every"] == 500
    assert table["save"]["keep"] == 2
    assert table["lora"] == {"rank": 16, "alpha": 1.0}
    assert "1 / 16" in lines["network_alpha"].why
    assert table["scheduler"] == {"timesteps": "logit-normal", "std": 1.5}
    fates = {key: lines[key].fate for key in lines}
    assert fates["general.shuffle_caption"] == fates["datasets[0].subsets[1].image_dir"] == "refused"
    assert fates["datasets[0].enable_bucket"] == fates["noise_offset"] == "refused"
    assert fates["general.keep_tokens"] == "dead"
    assert fates["mystery"] == "unknown"
    assert lines["datasets[0].batch_size"].line == 9
    assert lines["datasets[0].batch_size"].file == str(data)
    plans(imported)


SCRIPT = """#!/bin/bash
# musubi
DIT="models/qwen_image_edit_2509_bf16.safetensors"
python qwen_image_cache_latents.py --dataset_config data.toml --vae v.safetensors
accelerate launch --num_processes 1 --mixed_precision bf16 src/musubi_tuner/qwen_image_train_network.py \\
  --dit $DIT --dataset_config data.toml --model_version edit-2509 \\
  --network_module networks.lora_qwen_image --network_dim 32 --network_alpha 16 \\
  --timestep_sampling shift --discrete_flow_shift 2.2 \\
  --max_train_epochs 16 --save_every_n_epochs 2 --fp8_base --fp8_scaled \\
  --sample_prompts prompts.txt --sample_every_n_epochs 1 --output_name 'my lora'
"""


def test_a_script_of_musubi_with_the_files_it_names(tmp_path):
    (tmp_path / "data.toml").write_text(
        '[general]\nresolution = [960, 544]\n[[datasets]]\nimage_directory = "a"\ncontrol_directory = "c"\n'
    )
    (tmp_path / "prompts.txt").write_text("# two\na cat --w 520 --h 512 --s 30 --l 3.5 --n bad\na dog\n")
    imported = given(tmp_path, "train.sh", SCRIPT)
    table, lines = imported.table, told(imported)
    assert (table["family"], table["variant"], table["name"]) == ("qwen", "edit-2509", "my-lora")
    assert table["train"]["epochs"] == 16
    assert table["train"]["precision"] == "bf16"
    assert table["save"]["every"] == "epoch"
    assert lines["save_every_n_epochs"].fate == "changed"
    assert table["scheduler"] == {"timesteps": "shift", "shift": 2.2}
    assert table["quantization"]["name"] == "int8"
    assert lines["dit"].fate == "refused"
    assert lines["network_dim"].line == 7
    assert table["data"] == [{"folder": "a", "captions": "txt", "references": "c"}]
    assert table["train"]["resolution"] == 723  # the root of 960 x 544
    assert table["sampling"]["prompts"] == ["a cat", "a dog"]
    assert (table["sampling"]["width"], table["sampling"]["guidance"]) == (512, 3.5)
    assert "qwen_image_cache_latents (line 4)" in " ".join(imported.findings)
    plans(imported)


@pytest.mark.parametrize(("warmup", "updates"), [("100", 100), ("0.1", 160), ("5%", 80), ("much", 0)])
def test_warmup_in_updates_or_as_a_share(tmp_path, warmup, updates):
    text = f"train_network.py --network_module networks.lora --lr_scheduler cosine --lr_warmup_steps {warmup}"
    assert given(tmp_path, "a.sh", text, family="qwen").table["optimizer"]["warmup"] == updates  # of 1,600


def test_a_shift_that_its_own_trainer_ignores_is_dead(tmp_path):
    text = "python qwen_image_train_network.py --network_module networks.lora_qwen_image --discrete_flow_shift 3"
    imported = given(tmp_path, "a.sh", text)
    assert told(imported)["discrete_flow_shift"].fate == "dead"
    assert imported.table["scheduler"] == {"timesteps": "uniform"}


def test_folders_of_the_old_command_line_keep_their_repeats(tmp_path):
    text = "train_network.py --network_module=networks.lora --train_data_dir pictures --resolution 1024,768"
    imported = given(tmp_path, "a.txt", text, family="qwen")
    assert imported.table["data"] == [{"folder": "pictures", "captions": "caption"}]
    assert imported.table["train"]["resolution"] == 887
    plans(imported)


# -- diffusers -----------------------------------------------------------------------------------------------

EXAMPLE = """export MODEL_NAME="Qwen/Qwen-Image"
accelerate launch train_dreambooth_lora_qwen_image.py \\
  --pretrained_model_name_or_path=$MODEL_NAME --instance_data_dir="dog" --instance_prompt="a photo of sks dog" \\
  --rank=16 --lora_alpha 32 --lora_layers="to_k,to_q" --resolution=1024 --train_batch_size=1 \\
  --gradient_accumulation_steps=4 --use_8bit_adam --learning_rate=2e-4 --lr_scheduler=cosine --lr_warmup_steps 10 \\
  --max_train_steps=500 --mixed_precision bf16 --weighting_scheme logit_normal --logit_mean 0.5 \\
  --with_prior_preservation --validation_prompt "sks dog in a bucket" --push_to_hub --seed="0"
"""


def test_a_diffusers_example(tmp_path):
    imported = given(tmp_path, "a.sh", EXAMPLE)
    table, lines = imported.table, told(imported)
    assert (imported.importer, table["family"], table["variant"]) == ("diffusers", "qwen", "image")
    assert table["data"] == [{"folder": "dog", "repeats": 1, "captions": "none"}]
    assert table["trigger"] == "a photo of sks dog"
    assert table["lora"] == {"rank": 16, "alpha": 32.0, "targets": ["to_k", "to_q"]}
    assert table["train"]["updates"] == 500, "diffusers counts optimizer updates"
    assert table["scheduler"] == {"timesteps": "logit-normal", "mean": 0.5, "std": 1.0}
    assert table["optimizer"]["name"] == "adamw8bit"
    assert table["optimizer"]["warmup"] == 10
    assert lines["with_prior_preservation"].fate == lines["push_to_hub"].fate == "refused"
    assert lines["seed"].line == 7
    plans(imported)


# -- families and plugins ------------------------------------------------------------------------------------


class Named(Fake):
    known_as = {"fake_arch": "large", "is_fake": "", "train_dreambooth_lora_fake": "small"}  # noqa: RUF012


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        ({"arch": "fake_arch"}, "large"),
        ({"arch": "fake-arch:tag"}, "large"),
        ({"is_fake": True}, "small"),
        ({"name_or_path": "nobody/fake-large"}, "large"),
        ({"name_or_path": "/models/Fake-Large", "is_fake": True}, "large"),
        ({"name_or_path": "somebody/fake-large-fp8"}, "large"),
    ],
)
def test_a_family_says_itself_what_others_call_it(tmp_path, model, variant):
    kit = Kit(discover=False, plugins={"fake": FakePlugin(Named())})
    imported = given(tmp_path, "a.yaml", yaml_of(model=model), kit)
    assert (imported.table["family"], imported.table["variant"]) == ("fake", variant)


def test_a_family_is_known_for_its_own_variants_only():
    class Wrong(Fake):
        known_as = {"fake_arch": "medium"}  # noqa: RUF012

    with pytest.raises(PluginError, match="known as 'fake_arch'"):
        Kit(discover=False, plugins={"fake": FakePlugin(Wrong())})


def test_a_model_that_no_family_knows_needs_a_family(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text(yaml_of(model={"arch": "wan21", "name_or_path": "Wan-AI/Wan2.1"}))
    assert run(["import", str(file)]) == 2
    assert "Say --family NAME" in capsys.readouterr().err
    assert run(["import", str(file), "--family", "qwen", "--variant", "edit"]) == 0
    assert tomli.loads(capsys.readouterr().out)["variant"] == "edit"
    assert run(["import", str(file), "--family", "qwen", "--variant", "edits"]) == 2
    assert "Known are" in capsys.readouterr().err


class Several(Fake):
    """A family of which one variant matches no flows, one is told of guidance, and one draws without."""

    trainable_text = ("text_encoder",)
    known_as = {"noisy": "noisy", "told": "told", "bare": "bare"}  # noqa: RUF012
    variants = {  # noqa: RUF012
        "noisy": replace(Fake.variants["small"], source="nobody/noisy"),
        "told": replace(Fake.variants["small"], source="nobody/told", guidance="embedded", flow_shift=FlowShift()),
        "bare": replace(Fake.variants["small"], source="nobody/bare", guidance="none", flow_shift=FlowShift()),
    }
    default_variant = "noisy"

    @hookimpl
    def scheduler_rules(self, request):
        name = "ddpm" if request.settings.variant == "noisy" else "flowmatch"
        yield only("scheduler.name", name, because="as it was trained")


SEVERAL = Kit(discover=False, plugins={"fake": FakePlugin(Several())})


def test_text_encoders_are_taught_where_the_family_may(tmp_path):
    train = {"train_text_encoder": True, "lr": 1e-4, "min_snr_gamma": 5, "noise_scheduler": "ddpm"}
    imported = given(tmp_path, "a.yaml", yaml_of(model={"arch": "noisy"}, train=train), SEVERAL)
    assert imported.table["text_encoder"] == {"train": True, "learning_rate": 1e-4}
    assert imported.table["scheduler"] == {"name": "ddpm", "min_snr_gamma": 5.0}
    plans(imported, SEVERAL)

    text = (
        "train_network.py --network_module networks.lora --unet_lr 1e-4 --text_encoder_lr 5e-5 1e-6 --noise_offset 0.05"
    )
    imported = given(tmp_path, "a.sh", text, SEVERAL, family="fake", variant="noisy")
    assert imported.table["text_encoder"] == {"train": True, "learning_rate": 5e-5}
    assert imported.table["scheduler"] == {"noise_offset": 0.05}
    plans(imported, SEVERAL)
    imported = given(tmp_path, "a.sh", f"{text} --network_train_unet_only", SEVERAL, family="fake", variant="noisy")
    assert imported.table["text_encoder"] == {"train": False}
    assert told(imported)["text_encoder_lr"].fate == "dead"

    text = "train_dreambooth_lora_fake.py --instance_data_dir a --instance_prompt b --train_text_encoder --snr_gamma 5"
    imported = given(tmp_path, "a.sh", text, SEVERAL, family="fake", variant="noisy")
    assert imported.table["text_encoder"] == {"train": True, "learning_rate": 5e-6}
    assert imported.table["scheduler"] == {"min_snr_gamma": 5.0}
    assert imported.table["lora"] == {"rank": 4, "alpha": 4.0}
    plans(imported, SEVERAL)


@pytest.mark.parametrize(("variant", "fate"), [("noisy", "carried"), ("told", "refused"), ("bare", "refused")])
def test_guidance_is_what_the_variant_understands(tmp_path, variant, fate):
    sample = {"neg": "blurry", "guidance_scale": 4}
    imported = given(tmp_path, "a.yaml", yaml_of(model={"arch": variant}, sample=sample), SEVERAL)
    assert told(imported)["sample.neg"].fate == fate
    assert imported.table["sampling"].get("guidance") == (None if variant == "bare" else 4.0)
    plans(imported, SEVERAL)
    for text, usual in (("train_network.py --network_module networks.lora", 3.5), (EXAMPLE, 3.5)):
        imported = given(tmp_path, "a.sh", text, SEVERAL, family="fake", variant=variant)
        assert imported.table["train"].get("guidance") == (usual if variant == "told" else None)
        plans(imported, SEVERAL)


class Notes:
    """An importer of somebody's own."""

    def recognizes(self, document):
        return document.path.suffix == ".notes"

    def read(self, document, families, *, dataset=None, given=None):
        from lorakit.importers.draft import Draft, positive
        from lorakit.importers.leaf import Leaf

        pairs = [line.split() for line in document.text.splitlines()]
        draft = Draft("notes", document.name, [Leaf(key, value, at) for at, (key, value) in enumerate(pairs, 1)])
        draft.put("", "family", "fake")
        draft.same("rank", "lora.rank", positive)
        return draft.finish()


class NotesPlugin:
    @hookimpl
    def register(self, registry):
        registry.importer(Part(name="notes", summary="notes", load=f"{__name__}:Notes"))


def test_a_plugin_brings_an_importer(tmp_path):
    kit = Kit(discover=False, plugins={"fake": FakePlugin(), "notes": NotesPlugin()})
    assert sorted(kit.shelves.importers) == ["ai-toolkit", "diffusers", "kohya", "notes"]
    assert kit.shelves.importers.owner("notes") == "notes"
    imported = given(tmp_path, "a.notes", "rank 7\nmood good\n", kit)
    assert imported.table == {"family": "fake", "lora": {"rank": 7}}
    assert [line.fate for line in imported.lines] == ["carried", "unknown"]


def test_importers_are_listed(capsys):
    assert run(["plugins"]) == 0
    assert "importer ai-toolkit" in " ".join(capsys.readouterr().out.split())


def test_two_importers_that_recognize_a_file_ask_which(tmp_path):
    twice = type("Twice", (), {"register": hookimpl(lambda self, registry: registry.importer(part_of("other")))})()
    kit = Kit(discover=False, plugins={"fake": FakePlugin(), "notes": NotesPlugin(), "twice": twice})
    with pytest.raises(Exception, match="may be read as notes or as other"):
        given(tmp_path, "a.notes", "rank 7\n", kit)
    assert given(tmp_path, "a.notes", "rank 7\n", kit, by="notes").importer == "notes"


def part_of(name):
    return Part(name=name, summary=name, load=f"{__name__}:Notes")


@pytest.mark.parametrize("name", ["run.toml", "run.txt", "run"])
def test_a_toml_of_our_own_may_have_any_name(tmp_path, capsys, name):
    file = tmp_path / name
    file.write_text('family = "qwen"\n[lora]\nrank = 3\n')
    assert run(["plan", "--config", str(file), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["settings"]["lora"]["rank"] == 3
    file.write_text("[lora]\nrang = 3\n")
    assert run(["plan", "--family", "qwen", "--config", str(file)]) == 2
    assert "Did you mean lora.rank?" in capsys.readouterr().err
    file.write_text("[lora\n")
    assert run(["plan", "--family", "qwen", "--config", str(file)]) == 2
    assert "is not valid TOML" in capsys.readouterr().err


def test_a_script_is_taken_for_config(tmp_path, capsys):
    (tmp_path / "a.sh").write_text(EXAMPLE)
    assert run(["plan", "--config", str(tmp_path / "a.sh"), "--set", "data=[]", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["settings"]["lora"]["alpha"] == 32


@pytest.mark.parametrize("job", ["extract", "mod", "generate"])
def test_what_is_no_training_is_refused(tmp_path, job):
    with pytest.raises(Exception, match=f"its job is {job}"):
        given(tmp_path, "a.yaml", json.dumps({"job": job, "config": {"process": [{"type": "x"}]}}))


def test_references_of_previews_may_be_on_another_machine(tmp_path, capsys):
    sample = {"samples": [{"prompt": "a", "ctrl_img_1": "/no/such/a.png"}]}
    model = {"name_or_path": "Qwen/Qwen-Image-Edit-2509"}
    (tmp_path / "a.yaml").write_text(yaml_of(model=model, sample=sample))
    assert run(["import", str(tmp_path / "a.yaml")]) == 0
    assert tomli.loads(capsys.readouterr().out)["sampling"]["references"] == [["/no/such/a.png"]]


def test_a_foreign_toml_is_taken_for_config_too(tmp_path, capsys):
    file = tmp_path / "args.toml"
    file.write_text(ARGUMENTS)
    assert run(["plan", "--config", str(file), "--json"]) == 2  # an error of the plan: no pictures are named
    plan = json.loads(capsys.readouterr().out)
    assert plan["settings"]["lora"]["rank"] == 16
    assert [one["message"] for one in plan["problems"] if one["severity"] == "error"] == [NO_PICTURES]


def test_the_importer_of_the_plugin_page(tmp_path):
    text = next(block.text for block in blocks("python") if block.file == "house_import.py")
    (tmp_path / "house_import.py").write_text(text)
    kit = Kit(files=[tmp_path / "house_import.py"])
    imported = given(tmp_path, "settings.old", "size=8\nspeed=1e-4\ncolour=red\n", kit)
    assert imported.table == {"family": "qwen", "lora": {"rank": 8}, "optimizer": {"learning_rate": 1e-4}}
    assert [line.fate for line in imported.lines] == ["carried", "carried", "unknown"]

"""Exported files have the effect of what they were made of, to the bit where nothing is rounded, and load elsewhere."""

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from lorakit.engine import lora_pairs, proof
from lorakit.engine.lora_pairs import Pair
from lorakit.engine.parts import Source
from lorakit.errors import ConfigError, ModelError
from lorakit.layer_names import LAYOUTS, resolved
from lorakit.lora_order import Order
from tests.engine.lora_files import FAMILIES, effect, made, toy_layers, write

FIXED = ("flux", "kohya")  # diffusers splits the fused layers of these files at the widths of the published model


@pytest.fixture(params=FAMILIES)
def family(kit, request):
    return kit.shelves.families[request.param]


@pytest.fixture
def qwen(kit):
    return kit.shelves.families["qwen"]


@pytest.fixture
def export(kit):
    """Export files as asked; the file and what was done."""

    def call(out, *files, **asked):
        facts = [kit.inspect(one) for one in files]
        return kit.export(facts, Order(**{"layout": "diffusers", **asked}), out)

    return call


def load(kit, path):
    return lora_pairs.load(kit.inspect(path))


def told(path):
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def same(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def near(found, wanted, tolerance=1e-6):
    assert found.keys() == wanted.keys()
    for name in wanted:
        difference = (effect(found[name]) - effect(wanted[name])).norm()
        assert difference <= tolerance * effect(wanted[name]).norm(), name


# -- layouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_the_same_to_the_bit(tmp_path, kit, export, family, layout):
    first = write(tmp_path / "a.safetensors", family, made(family, dtype=torch.bfloat16))
    export(tmp_path / "b.safetensors", first, layout=layout)
    export(tmp_path / "c.safetensors", tmp_path / "b.safetensors", layout="diffusers")
    assert same(*(safetensors.torch.load_file(tmp_path / f"{one}.safetensors") for one in "ac"))
    assert kit.inspect(tmp_path / "b.safetensors").layout == resolved(family, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_diffusers_loads_every_layout_at_the_full_effect(tmp_path, kit, export, family, layout, toys):
    if (family.name, layout) == FIXED:
        pytest.skip("diffusers takes these files at the model's full width only")
    source = made(family, scale=0.5)
    first = write(tmp_path / "a.safetensors", family, source, "kohya")
    out = tmp_path / "b.safetensors"
    export(out, first, layout=layout)
    _loads(kit, family, out, source, toys)


def test_diffusers_reads_fused_layers_at_the_full_width(tmp_path, kit, export):
    from diffusers import FluxPipeline

    flux, chance = kit.shelves.families["flux"], torch.Generator().manual_seed(1)
    parts = {
        "transformer_blocks.3.attn": dict.fromkeys(
            ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"), 3072
        ),
        "single_transformer_blocks.5": {"attn.to_q": 3072, "attn.to_k": 3072, "attn.to_v": 3072, "proj_mlp": 12288},
    }
    pairs = {
        f"transformer.{block}.{name}": Pair(
            torch.randn(2, 3072, generator=chance), torch.randn(rows, 2, generator=chance)
        )
        for block, layers in parts.items()
        for name, rows in layers.items()
    }
    first = write(tmp_path / "a.safetensors", flux, pairs)
    export(tmp_path / "b.safetensors", first, layout="kohya")
    held = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert len(held) == 9  # three fused layers
    read = FluxPipeline.lora_state_dict(held)
    for name, pair in pairs.items():
        got = Pair(read[f"{name}.lora_A.weight"], read[f"{name}.lora_B.weight"])
        assert (effect(got) - effect(pair)).norm() < 1e-6 * effect(pair).norm()


def test_diffusers_loads_a_merged_and_resized_file(tmp_path, kit, export, family, toys):
    files = [write(tmp_path / f"{seed}.safetensors", family, made(family, seed=seed)) for seed in (1, 2)]
    merged = {
        name: Pair(torch.cat([one.lora_a, other.lora_a]), torch.cat([0.7 * one.lora_b, -0.5 * other.lora_b], 1))
        for (name, one), other in zip(made(family, seed=1).items(), made(family, seed=2).values(), strict=True)
    }
    for layout in ("comfyui", "diffusers"):
        export(tmp_path / "m.safetensors", *files, weights=(0.7, -0.5), layout=layout)
        _loads(kit, family, tmp_path / "m.safetensors", merged, toys)
    export(tmp_path / "r.safetensors", *files, weights=(0.7, -0.5), rank=5)
    _loads(kit, family, tmp_path / "r.safetensors", load(kit, tmp_path / "r.safetensors"), toys)


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    return tmp_path_factory.mktemp("toys")


def _loads(kit, family, file, wanted, toys):
    toy = toys / family.name
    if not toy.exists():
        family.toy(toy, family.default_variant)
    plan = kit.plan({"family": family.name, "preset": "toy"})
    component = family.components[0]
    denoiser = family.denoiser(plan, Source(toy, "the toy", torch.float32))
    held = safetensors.torch.load_file(file)
    found = proof.load_into({component: denoiser.module}, file, held, plan, family)
    assert len(found) == len(wanted)
    for name, (lora_a, lora_b, scale) in found.items():
        got, want = effect(Pair(lora_a, lora_b, scale)), effect(wanted[name])
        assert (got - want).norm() < 1e-5 * want.norm(), name


# -- alpha and numbers --------------------------------------------------------------------------------------------


def test_alpha_is_folded_and_restored_to_the_bit(tmp_path, kit, export, family):
    half = made(family, scale=0.5, dtype=torch.bfloat16)  # a power of two, so that nothing is rounded
    first = write(tmp_path / "a.safetensors", family, half, "kohya")
    export(tmp_path / "b.safetensors", first)
    assert not [name for name in safetensors.torch.load_file(tmp_path / "b.safetensors") if "alpha" in name]
    assert told(tmp_path / "b.safetensors")["ss_network_alpha"] == "4"
    near(load(kit, tmp_path / "b.safetensors"), half, 0)
    if family.name == "flux":
        return  # its fused layers have another rank and alpha than its others
    export(tmp_path / "c.safetensors", tmp_path / "b.safetensors", layout="kohya", alpha="restore")
    first, third = (safetensors.torch.load_file(tmp_path / f"{one}.safetensors") for one in "ac")
    assert all(torch.equal(first[name].float(), third[name].float()) for name in first)


@pytest.mark.parametrize("alpha", [3.0, 8.0])
def test_any_alpha_can_be_written_and_changes_nothing(tmp_path, kit, export, family, alpha):
    pairs = made(family)
    first = write(tmp_path / "a.safetensors", family, pairs)
    export(tmp_path / "b.safetensors", first, layout="kohya", alpha=alpha)
    near(load(kit, tmp_path / "b.safetensors"), pairs)
    assert {one.alpha / one.rank for one in kit.inspect(tmp_path / "b.safetensors").layers} == {alpha / 4}


def test_lorakit_says_itself_which_alpha_it_folded(tmp_path, kit, export, qwen):
    about = {"lorakit.config": json.dumps({"lora": {"rank": 4, "alpha": 2.0}})}
    first = write(tmp_path / "a.safetensors", qwen, made(qwen), about=about)
    export(tmp_path / "b.safetensors", first, layout="kohya", alpha="restore")
    assert {one.alpha for one in kit.inspect(tmp_path / "b.safetensors").layers} == {2.0}
    near(load(kit, tmp_path / "b.safetensors"), made(qwen))


def test_the_scale_that_only_diffusers_reads_is_folded_in(tmp_path, kit, export, qwen):
    about = {"lora_adapter_metadata": '{"transformer.r": 4, "transformer.lora_alpha": 2}'}
    first = write(tmp_path / "a.safetensors", qwen, made(qwen), about=about)
    export(tmp_path / "b.safetensors", first)
    assert "lora_adapter_metadata" not in told(tmp_path / "b.safetensors")
    near(load(kit, tmp_path / "b.safetensors"), made(qwen, scale=0.5))


def test_the_number_format_is_the_asked_one(tmp_path, export, qwen):
    first = write(tmp_path / "a.safetensors", qwen, made(qwen))
    export(tmp_path / "b.safetensors", first, dtype="fp16")
    before, after = (safetensors.torch.load_file(tmp_path / f"{one}.safetensors") for one in "ab")
    assert all(torch.equal(before[name].half(), after[name]) for name in before)


def test_what_fp16_cannot_hold_is_refused(tmp_path, export, qwen):
    pairs = made(qwen)
    next(iter(pairs.values())).lora_b[0, 0] = 1e6
    first = write(tmp_path / "a.safetensors", qwen, pairs)
    with pytest.raises(ModelError, match="too large for float16"):
        export(tmp_path / "b.safetensors", first, dtype="fp16")
    assert not (tmp_path / "b.safetensors").exists()


# -- several, and smaller -----------------------------------------------------------------------------------------


def test_merging_is_the_weighted_sum_of_effects(tmp_path, kit, export, family):
    parts = [made(family, seed=1, rank=4), made(family, seed=2, rank=3, scale=2.0)]
    lost = next(iter(parts[1]))
    del parts[1][lost]  # a layer that only the first has
    files = [write(tmp_path / "0.safetensors", family, parts[0])]
    if family.name == "flux":  # whose layers are fused in kohya's layout, and none may be lost there
        folded = {name: Pair(one.lora_a, 2 * one.lora_b) for name, one in parts[1].items()}
        files.append(write(tmp_path / "1.safetensors", family, folded))
    else:
        files.append(write(tmp_path / "1.safetensors", family, parts[1], "kohya"))
    export(tmp_path / "m.safetensors", *files, weights=(0.7, 0.5))
    found = load(kit, tmp_path / "m.safetensors")
    for name, one in parts[0].items():
        wanted = 0.7 * effect(one) + (0 if name == lost else 0.5 * effect(parts[1][name]))
        assert (effect(found[name]) - wanted).norm() < 1e-6 * wanted.norm()
    assert {one.rank for name, one in found.items() if name != lost} == {7}
    assert found[lost].rank == 4


def test_a_smaller_rank_keeps_the_most_that_a_smaller_rank_can(tmp_path, kit, export, qwen):
    pairs = made(qwen, rank=6)
    first = write(tmp_path / "a.safetensors", qwen, pairs)
    done = export(tmp_path / "b.safetensors", first, rank=2).done["resized"]
    found, kept, whole = load(kit, tmp_path / "b.safetensors"), 0.0, 0.0
    for name, pair in pairs.items():
        left, values, right = torch.linalg.svd(effect(pair), full_matrices=False)
        nearest = left[:, :2] * values[:2] @ right[:2]
        assert (effect(found[name]) - nearest).norm() < 1e-5 * nearest.norm()
        kept, whole = kept + float(values[:2].square().sum()), whole + float(values.square().sum())
    assert done["energy"] == pytest.approx(kept / whole)
    assert done["least"] < done["energy"]


def test_a_rank_that_is_large_enough_changes_nothing(tmp_path, export, qwen):
    first = write(tmp_path / "a.safetensors", qwen, made(qwen, dtype=torch.bfloat16))
    done = export(tmp_path / "b.safetensors", first, rank=4).done["resized"]
    assert done["energy"] == 1
    assert same(*(safetensors.torch.load_file(tmp_path / f"{one}.safetensors") for one in "ab"))


def test_what_was_joined_comes_apart_at_its_rank(tmp_path, kit, export, qwen):
    """The same file twice at halves is the file again, and SVD finds that its rank is no larger."""
    first = write(tmp_path / "a.safetensors", qwen, made(qwen))
    done = export(tmp_path / "m.safetensors", first, first, weights=(0.5, 0.5), rank=4).done["resized"]
    assert done["energy"] == pytest.approx(1, abs=1e-6)
    near(load(kit, tmp_path / "m.safetensors"), made(qwen), 1e-5)


def test_a_layer_of_nothing_survives_a_smaller_rank(tmp_path, kit, export, qwen):
    pairs = made(qwen)
    empty = next(iter(pairs))
    pairs[empty] = Pair(pairs[empty].lora_a, torch.zeros_like(pairs[empty].lora_b))
    first = write(tmp_path / "a.safetensors", qwen, pairs)
    export(tmp_path / "b.safetensors", first, rank=2)
    assert effect(load(kit, tmp_path / "b.safetensors")[empty]).norm() == 0


# -- what it says -------------------------------------------------------------------------------------------------


def test_metadata_is_carried_over_and_tells_what_was_done(tmp_path, export, qwen):
    about = {"ss_seed": "7", "modelspec.trigger_phrase": "one", "ss_tag_frequency": '{"x": {"y": 1}}'}
    first = write(tmp_path / "a.safetensors", qwen, made(qwen), about=about)
    second = write(
        tmp_path / "b.safetensors", qwen, made(qwen, seed=3), about={**about, "modelspec.trigger_phrase": "two"}
    )
    export(tmp_path / "c.safetensors", first, layout="comfyui")
    found = told(tmp_path / "c.safetensors")
    assert found.items() >= about.items()
    assert found["ss_output_name"] == "c"
    (done,) = json.loads(found["lorakit.exported"])
    assert done["files"] == [{"name": "a.safetensors", "weight": 1.0}]
    assert done["layout"] == "comfyui"
    export(tmp_path / "d.safetensors", tmp_path / "c.safetensors")
    assert len(json.loads(told(tmp_path / "d.safetensors")["lorakit.exported"])) == 2
    export(tmp_path / "m.safetensors", first, second)
    merged = told(tmp_path / "m.safetensors")
    assert merged["modelspec.trigger_phrase"] == "one, two"
    assert merged["modelspec.hash_sha256"] not in (told(first)["modelspec.hash_sha256"], None)
    assert merged["ss_network_dim"] == merged["ss_network_alpha"] == "8"
    export(tmp_path / "n.safetensors", first, metadata=False)
    assert told(tmp_path / "n.safetensors") == {}


# -- what is refused ----------------------------------------------------------------------------------------------


def test_files_that_do_not_belong_together(tmp_path, kit, export):
    families = [kit.shelves.families[name] for name in ("qwen", "sdxl")]
    files = [write(tmp_path / f"{one.name}.safetensors", one, made(one)) for one in families]
    with pytest.raises(ConfigError, match="different families"):
        export(tmp_path / "m.safetensors", *files)
    other = made(families[0])
    name = next(iter(other))
    other[name] = Pair(torch.ones(4, 5), torch.ones(7, 4))
    wrong = write(tmp_path / "w.safetensors", families[0], other)
    with pytest.raises(ModelError, match="not for the same base"):
        export(tmp_path / "m.safetensors", files[0], wrong)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"transformer.transformer_blocks.0.attn.to_q.dora_scale": torch.ones(3)}, "more than LoRA halves"),
        (
            {"transformer.x.lora_A.weight": torch.ones(1, 2), "transformer.x.lora_B.weight": torch.ones(2, 1)},
            "does not know",
        ),
        ({"transformer.img_in.lora_A.weight": torch.ones(1, 2)}, "halves without the other"),
    ],
)
def test_what_is_more_than_lora_is_refused(tmp_path, export, qwen, more, says):
    first = write(tmp_path / "a.safetensors", qwen, made(qwen))
    tensors = {**safetensors.torch.load_file(first), **more}
    safetensors.torch.save_file(tensors, first, {"ss_base_model_version": "qwen_image"})
    with pytest.raises(ModelError, match=says):
        export(tmp_path / "b.safetensors", first)


def test_alpha_where_there_is_none(tmp_path, export, qwen):
    first = write(tmp_path / "a.safetensors", qwen, made(qwen))
    with pytest.raises(ConfigError, match="have no alpha"):
        export(tmp_path / "b.safetensors", first, alpha=2.0)
    with pytest.raises(ConfigError, match="does not say which alpha"):
        export(tmp_path / "b.safetensors", first, layout="kohya", alpha="restore")


def test_a_fused_layer_needs_its_last_part(tmp_path, kit, export):
    flux = kit.shelves.families["flux"]
    pairs = {name: one for name, one in made(flux).items() if "proj_mlp" not in name}
    first = write(tmp_path / "a.safetensors", flux, pairs)
    with pytest.raises(ModelError, match=r"single_blocks_0_linear1 cannot be written.*|cannot be written"):
        export(tmp_path / "b.safetensors", first, layout="kohya")
    pairs = {name: one for name, one in made(flux).items() if not name.endswith("to_k")}  # nothing is learned there
    first = write(tmp_path / "a.safetensors", flux, pairs)
    export(tmp_path / "b.safetensors", first, layout="kohya")
    found = load(kit, tmp_path / "b.safetensors")
    near({name: found[name] for name in pairs}, pairs)
    assert all(effect(found[name]).norm() == 0 for name in found.keys() - pairs.keys())


def test_there_are_layers_to_test_on(kit):
    assert all(len(toy_layers(kit.shelves.families[name])) > 30 for name in FAMILIES)

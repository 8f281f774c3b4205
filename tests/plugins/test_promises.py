"""Every family of the house keeps every promise that plugin authors' families are held to, with no exception."""

import pytest
import torch

from lorakit import Kit
from lorakit.testing import PROMISES, check_family, family_promises

FAMILIES = Kit().shelves.families


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


test_flux = family_promises(FAMILIES["flux"])
test_qwen = family_promises(FAMILIES["qwen"])
test_sdxl = family_promises(FAMILIES["sdxl"])


@pytest.mark.parametrize(
    ("name", "variant", "seen"), [("qwen", "edit-2509", "up to 3"), ("flux", "kontext", "up to 1")]
)
def test_variants_with_references_are_taught_with_them(name, variant, seen):
    (promise,) = [one for one in PROMISES if one.name.startswith("references")]
    (kept,) = check_family(FAMILIES[name], variant, promises=[promise])
    assert kept.note.startswith(seen)


def test_schnell_draws_as_its_pipeline_is_called():
    (previews,) = [one for one in PROMISES if one.name.startswith("previews")]
    (kept,) = check_family(FAMILIES["flux"], "schnell", promises=[previews])
    assert "levels apart from FluxPipeline" in kept.note

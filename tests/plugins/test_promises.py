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


def test_schnell_draws_as_its_pipeline_is_called():
    (previews,) = [one for one in PROMISES if one.name.startswith("previews")]
    (kept,) = check_family(FAMILIES["flux"], "schnell", promises=[previews])
    assert "levels apart from FluxPipeline" in kept.note

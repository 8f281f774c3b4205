"""The family keeps every promise that families make, and its rules say what they should."""

import lorakit_hello
import pytest
import torch
from lorakit_hello import Hello

from lorakit import Kit
from lorakit.errors import RuleError
from lorakit.testing import family_promises

torch.set_num_threads(1)
test_promise = family_promises(Hello())


@pytest.fixture
def plan():
    """A plan of the family, by core and this plugin alone, whatever else is installed."""
    kit = Kit(discover=False, plugins={"hello": lorakit_hello})
    return lambda **tables: kit.plan({"family": "hello", "preset": "none", **tables})


def test_it_draws_as_the_model_card_says(plan):
    sampling = plan().settings.sampling
    assert (sampling.guidance, sampling.steps) == (7.5, 50)


def test_it_refuses_another_objective(plan):
    with pytest.raises(RuleError, match="trained to predict noise"):
        plan(scheduler={"name": "flowmatch"})


def test_it_warns_of_large_pictures(plan):
    assert "doubles" in " ".join(problem.message for problem in plan(train={"resolution": 1024}).problems)

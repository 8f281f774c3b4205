"""Two processes on two hosts, each with a network of its own, joined by a cable that can be cut."""

from __future__ import annotations

import pytest

from lorakit.engine import checkpoint
from tests.engine import hosts
from tests.engine.several import SIX_BY_TWO, asked, codes, off

refused = hosts.refused()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(refused), reason=f"no network of its own: {refused}")]


@pytest.mark.parametrize("way", [pytest.param("replicated", marks=pytest.mark.thorough), "sharded"])
def test_two_hosts_teach_what_one_process_does(crew, place, whole, way):
    command = asked(place, f"hosts-{way}", **{**SIX_BY_TWO, "train__sharding": way})
    told = crew.run(2, *command, apart=True, kept=False)
    assert codes(told) == [0, 0], told
    assert off(place, whole, f"hosts-{way}") < 1e-5


@pytest.mark.thorough
@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_a_cable_that_is_cut_ends_both_hosts_and_the_first_names_the_other(crew, place, way):
    command = asked(place, f"cut-{way}", **{**SIX_BY_TWO, "train__sharding": way, "train__timeout": 30})
    at = {"rank": 1, "update": 4, "do": "cut"}
    told = crew.run(2, *command, at=at, apart=True, kept=False, watched=False)
    assert codes(told) == [1, 1], told
    assert "process 1 on host-1 was lost" in told[0].err
    assert checkpoint.newest(place / "runs" / f"cut-{way}").update == 3

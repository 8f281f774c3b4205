"""The promises that every family makes, tried one after another on its toy, on a CPU."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.testing import of_facts, of_parts, of_references, of_training
from lorakit.testing.bench import Bench
from lorakit.testing.promise import Promise, PromiseError

if TYPE_CHECKING:
    from lorakit import Family, Kit

PROMISES = (
    Promise(
        "facts are complete",
        "Plans, names in files and estimates rest on these facts, and would be wrong without a word.",
        of_facts.facts,
    ),
    Promise(
        "the toy loads in the reference pipeline",
        "Nothing that is shown on the toy says anything about the model that people will teach.",
        of_facts.toy,
    ),
    Promise(
        "shapes and scaling",
        "Noise is mixed in the wrong proportion or shape, and training learns something else than it seems to.",
        of_parts.shapes,
    ),
    Promise(
        "predict is deterministic and batch-independent",
        "What a picture teaches depends on chance or on its neighbours, so no run can be repeated or compared.",
        of_parts.predictions,
    ),
    Promise(
        "text is cached and restored equal",
        "Training reads text from the cache, and so learns other captions than previews and people use.",
        of_parts.text,
    ),
    Promise(
        "modulation can be worked out ahead",
        "With speed.modulation = table, the model that is taught is not the model that people load.",
        of_parts.modulation,
    ),
    Promise(
        "only adapter parameters train and the base stays",
        "The file holds the adapter alone, so whatever else was learned is lost, and the file fits no other base.",
        of_training.only_the_adapter,
    ),
    Promise(
        "references reach what is taught",
        "An editing model is taught without looking at what it shall edit, and the file changes nothing there.",
        of_references.references,
    ),
    Promise(
        "text encoders that may be trained are",
        "People wait for a run with text_encoder.train, and their file holds what no program loads, or nothing.",
        of_training.trained_text,
    ),
    Promise("the loss falls on the toy", "Whatever people train will not be learned either.", of_training.loss),
    Promise(
        "every quantizer that it admits",
        "People with small cards choose it, and their runs fail or learn from noise.",
        of_training.quantizers,
    ),
    Promise(
        "checkpoint and resume are equal",
        "A run that was stopped ends elsewhere than one that was not, without a word.",
        of_training.resume,
    ),
    Promise(
        "the export loads back",
        "People get a file that does nothing, or something else, in the programs that they draw with.",
        of_training.export,
    ),
    Promise(
        "previews equal the reference pipeline's",
        "What people see while they train is not what they will get.",
        of_parts.previews,
    ),
    Promise(
        "rules are order-free",
        "What is decided depends on what was asked or installed before, and nobody can say why.",
        of_facts.rules,
    ),
)
"""In the order in which they are tried: what later ones rest on comes first."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A promise that holds, what was seen, and the CPU seconds that it took."""

    promise: str
    note: str
    seconds: float


def check_family(
    family: Family,
    variant: str | None = None,
    *,
    kit: Kit | None = None,
    folder: Path | None = None,
    promises: Iterable[Promise] = PROMISES,
) -> list[Kept]:
    """Try every promise of a family's variant, the usual one where none is named, on its toy.

    `kit` must hold the family, and is needed where it uses parts that other plugins bring; without it, the family is
    tried with core alone. `folder` keeps what is made. PromiseError names every promise that is broken.
    """
    kept, broken = list[Kept](), list[PromiseError]()
    with tempfile.TemporaryDirectory() as aside:
        bench = Bench(family, folder or Path(aside), variant, kit)
        for promise in promises:
            began = time.process_time()
            try:
                note = promise.keep(bench)
            except PromiseError as error:
                broken.append(error)
            else:
                kept.append(Kept(promise.name, note, time.process_time() - began))
    if len(broken) == 1:
        raise broken[0]
    if broken:
        raise PromiseError(f"{len(broken)} promises are broken", why=" ".join(str(error) for error in broken))
    return kept


def family_promises(family: Family, variant: str | None = None, *, kit: Kit | None = None) -> Callable[..., None]:
    """A pytest test, parametrised over the promises: `test_family = family_promises(Mine())` in a test module."""
    import pytest

    made: list[Bench] = []

    @pytest.mark.parametrize("promise", PROMISES, ids=lambda one: one.name)
    def test_promise(promise: Promise, tmp_path_factory: Any) -> None:
        if not made:
            made.append(Bench(family, tmp_path_factory.mktemp("family"), variant, kit))
        promise.keep(made[0])

    found: Callable[..., None] = test_promise
    return found

"""What a process of a test sees of a base that is sharded, and does to itself while it gathers a block."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any


def before(number: int, happen: Callable[[], None]) -> None:
    """Let something happen before this process gathers a block for the so manieth time."""
    from lorakit.engine import sharding

    own, calls = sharding.GATHER, count(1)

    def ill(*arguments: Any, **named: Any) -> Any:
        if next(calls) == number:
            happen()
        return own(*arguments, **named)

    sharding.GATHER = ill


def hold_whole() -> None:
    """Let what is no parameter stay as it is."""
    from lorakit.engine import sharding

    sharding.as_parameters = lambda block: None


def weigh(into: Path) -> None:
    """Write down after each update the bytes gathered in it, and what there is to say of each block."""
    from lorakit.engine import sharding
    from lorakit.engine.loop import Trainer

    own, start, gathered = sharding.GATHER, Trainer.start, list[int]()

    def counted(output: Any, *arguments: Any, **named: Any) -> Any:
        gathered.append(output.nbytes)
        return own(output, *arguments, **named)

    def weighed(self: Trainer, *arguments: Any) -> None:
        gathered.clear()
        start(self, *arguments)
        facts = {"gathered": list(gathered), "blocks": [scales(block) for block in self.denoiser.blocks]}
        with into.open("a") as file:
            file.write(json.dumps(facts) + "\n")

    sharding.GATHER = counted
    Trainer.start = weighed  # type: ignore[method-assign]


def scales(block: Any) -> dict[str, Any]:
    """Bytes of a block's base that lie in this process, bytes of all of it, and a digest of its values."""
    import torch

    from lorakit.engine.gathered import whole

    here = sum(getattr(one, "_local_tensor", one).nbytes for one in base(block))
    with whole(block):
        digest = sha256()
        for one in base(block):
            raw = (
                one.clone().flatten().view(torch.uint8)
            )  # numpy's hold on the own memory would keep torch from freeing it
            digest.update(raw.numpy().tobytes())
        return {"here": here, "all": sum(one.nbytes for one in base(block)), "digest": digest.hexdigest()}


def base(block: Any) -> list[Any]:
    """The tensors of a block that are none of its adapter's, by name."""
    named = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    return [named[name].detach() for name in sorted(named) if "lora_" not in name]

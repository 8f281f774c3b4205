"""Peak host memory while a base is loaded: `python benchmarks/loading.py`.

A transformer of random weights, a few hundred megabytes, is written to a temporary folder; each way of loading it runs
in a fresh process. Printed are the peak resident memory over that of a process which makes the same model without its
weights, and its ratio to the weights' own size. The rank-16 adapter is within the peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

LAYERS, HEADS = 8, 6
WAYS = ("nothing", "from_pretrained", "none", "int8", "int4", "int2")


def write(folder: Path) -> int:
    """A model folder with a bf16 transformer in small shards; its size in bytes."""
    import torch
    from diffusers import QwenImageTransformer2DModel

    from lorakit_qwen.family import Qwen

    Qwen().toy(folder, "image")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    for file in (folder / "transformer").iterdir():
        file.unlink()
    sizes = {"attention_head_dim": 128, "axes_dims_rope": [16, 56, 56], "num_attention_heads": HEADS}
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    model = QwenImageTransformer2DModel(**{**given, **sizes, "num_layers": LAYERS}).to(torch.bfloat16)
    model.save_pretrained(folder / "transformer", max_shard_size="100MB")
    return sum(one.nbytes for one in model.parameters())


def load(way: str, folder: Path, output: str) -> None:
    """Load the model one way and print the process's peak in bytes."""
    import bitsandbytes  # noqa: F401
    import optimum.quanto  # noqa: F401
    import torch
    from diffusers import QwenImageTransformer2DModel

    from lorakit import Kit
    from lorakit.control import Control
    from lorakit.engine import memory
    from lorakit.engine.cache import Cache
    from lorakit.engine.loading import load_model
    from lorakit.engine.parts import Source
    from lorakit.engine.phases import Context

    kit, device = Kit(), torch.device("cpu")
    family, source = kit.shelves.families["qwen"], Source(folder, "it", torch.bfloat16)
    quantization = {"name": way if way in WAYS[2:] else "none", "uncorrected": True}
    plan = kit.plan({"family": "qwen", "preset": "toy", "quantization": quantization, "output": output})
    held: list[object] = [family.denoiser(plan, source.hollow())]
    if way == "from_pretrained":
        model = source.load(QwenImageTransformer2DModel, "transformer")
        held += [model, *(one.sum() for one in model.parameters())]  # or they are mapped, and not yet read
    elif way != "nothing":
        work = load_model(Context(plan, family, kit.shelves, source, Cache(Path(output)), device, Control()))
        while True:
            try:
                next(work)
            except StopIteration as end:
                held.append(end.value)
                break
    print(memory.peak(device))


def main() -> None:
    """Measure and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        # in a process of its own: a process's peak starts at its parent's
        made = subprocess.run([sys.executable, __file__, "write", f"{folder}/model"], check=True, capture_output=True)
        size, peaks = int(made.stdout.split()[-1]), {}
        for way in WAYS:
            command = [sys.executable, __file__, way, f"{folder}/model", f"{folder}/runs"]
            peaks[way] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    print(f"weights {size / 1e6:.0f} MB in bf16, one block {size / LAYERS / 1e6:.0f} MB")
    print(f"{'way':18}{'peak MB':>10}{'ratio':>8}")
    for way in WAYS[1:]:
        used = peaks[way] - peaks["nothing"]
        print(f"{way:18}{used / 1e6:10.0f}{used / size:8.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        print(write(Path(sys.argv[2])))
    elif sys.argv[1:]:
        load(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    else:
        main()

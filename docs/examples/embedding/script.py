"""Trains the toy on a folder of pictures and prints what happens: `python script.py PICTURES [OUTPUT]`."""

import sys

from lorakit import Kit, LorakitError
from lorakit.events import Alarm, PreviewDrawn, RunFinished, UpdateFinished, Warned

pictures, output = sys.argv[1], (*sys.argv[2:], "runs")[0]
kit = Kit()
wanted = {"family": "qwen", "preset": "toy", "trigger": "sks", "data": [{"folder": pictures}], "output": output}
wanted |= {"name": "script", "train": {"updates": 10}, "sampling": {"every": 5, "prompts": ["sks"]}}
try:
    plan = kit.plan(wanted)
    for problem in plan.problems:
        print(f"{problem.severity}: {problem.message}")
    for event in kit.train(plan):
        match event:
            case UpdateFinished(update=update, loss=loss):
                print(f"update {update} of {plan.settings.train.updates}: loss {loss:.3f}")
            case PreviewDrawn(path=path):
                print("drawn:", path)
            case Warned(message=message) | Alarm(message=message):
                print("warning:", message)
            case RunFinished(lora=lora, proof=proof):
                print(f"done: {lora}\n{proof}")
            case _:
                pass
except LorakitError as error:
    sys.exit(f"error: {error}")

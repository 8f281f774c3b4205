"""Rules for small cards: a base that fits, a command that lists what does, and a note of what a run really took."""

from lorakit_lowvram.plugin import LowVram

PLUGIN = LowVram()

"""GPUs as their makers describe them, and what they are taken to sustain."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from lorakit.errors import ConfigError

PCIE = 31.5  # 4.0 x16


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU: memory in GB as sold, dense TFLOP/s (bf16 with fp32 accumulation, fp32, int8), bandwidth in GB/s.

    `sustained` is the share of the rated bf16 speed that large matrix products hold, `link` how fast it hears from the
    other cards of its host, in GB/s: by NVLink where boards are sold with it, else by PCIe.
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    int8: float
    bandwidth: float
    sustained: float
    link: float = PCIE


# Rated figures are those of the makers' data sheets and architecture papers, without sparsity. Of the sustained shares
# only the H100's was measured (798 TFLOP/s on an SXM board); the others are assumed: cards that are limited by power
# hold less. `lorakit calibrate` replaces them.
CARDS = (
    Card("RTX 3060", 12, 25.6, 12.7, 102, 360, 0.95),
    Card("RTX 3090", 24, 71, 35.6, 284, 936, 0.90),
    Card("RTX 4060 Ti", 16, 44, 22, 177, 288, 0.95),
    Card("RTX 4070 Ti SUPER", 16, 88, 44, 353, 672, 0.95),
    Card("RTX 4080", 16, 97.5, 48.7, 390, 717, 0.95),
    Card("RTX 4090", 24, 165, 82.6, 660, 1008, 0.95),
    Card("RTX 5070 Ti", 16, 88, 44, 352, 896, 0.95),
    Card("RTX 5080", 16, 113, 56, 450, 960, 0.95),
    Card("RTX 5090", 32, 209, 105, 838, 1792, 0.95),
    Card("RTX A5000", 24, 111, 27.8, 222, 768, 0.75),
    Card("RTX A6000", 48, 155, 38.7, 310, 768, 0.75),
    Card("RTX 6000 Ada", 48, 364, 91, 728, 960, 0.70),
    Card("L4", 24, 121, 30, 242, 300, 0.50),
    Card("L40", 48, 181, 90.5, 362, 864, 0.85),
    Card("L40S", 48, 362, 91.6, 733, 864, 0.70),
    Card("A10", 24, 125, 31, 250, 600, 0.60),
    Card("A40", 48, 150, 37, 299, 696, 0.75),
    Card("A100-40", 40, 312, 19.5, 624, 1555, 0.85, 300),
    Card("A100-80", 80, 312, 19.5, 624, 2039, 0.85, 300),
    Card("H100", 80, 989, 67, 1979, 3350, 0.807, 450),
    Card("H200", 141, 989, 67, 1979, 4800, 0.807, 450),
    Card("B200", 180, 2250, 75, 4500, 8000, 0.75, 900),
)


def find(name: str) -> Card:
    """The card that a person means by `name`: `4090`, `RTX 4090` and `rtx-4090` are one."""
    wanted = _key(name)
    found = [card for card in CARDS if _key(card.name) == wanted]
    if found:
        return found[0]
    keys = {_key(card.name): card.name for card in CARDS}
    starting = [known for key, known in keys.items() if key.startswith(wanted)] if wanted else []
    near = starting or [keys[key] for key in difflib.get_close_matches(wanted, keys, n=2)]
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(
        f"no GPU is known as '{name}'",
        where="--gpu",
        fix=f"{hint}Known are {', '.join(card.name for card in CARDS)}. For another, say --memory GB.",
    )


def of_device(device: str) -> Card | None:
    """The card that a driver calls `device`, such as `NVIDIA A100-SXM4-80GB`."""
    called = _key(device)
    fitting = [card for card in CARDS if re.search(rf"(?<![a-z0-9]){_key(card.name)}(?!ti|super|laptop|d|g)", called)]
    return max(fitting, key=lambda card: len(card.name), default=None)


def _key(name: str) -> str:
    """A name without its maker, its board and its punctuation."""
    return re.sub(r"nvidia|geforce|rtx|sxm\d*|pcie|nvl|generation|gb\b|[^a-z0-9]", "", name.lower())

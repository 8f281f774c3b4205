"""torchrun, called for a command of lorakit's own: as many processes on this machine as were asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

STOPPED = 130
PATIENCE = "600"
"""Seconds that stopped processes have to save, where torchrun of itself gives them 30."""


def torchrun(count: int, arguments: Sequence[str]) -> int:
    """The exit code of `lorakit` with these arguments, carried out by `count` processes that torchrun starts."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in [one for one in logging.root.manager.loggerDict if one.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.ERROR)  # lorakit tells of a stop
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", PATIENCE)
    given = ["--standalone", "--nproc-per-node", str(count), "-m", "lorakit", *arguments]
    try:
        run.run(run.parse_args(given))  # type: ignore[no-untyped-call]
    except SignalException:
        return STOPPED
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    return 0

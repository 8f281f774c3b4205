"""Hosts of a test: each process in a network of its own with a name of its own, two of them joined by a cable.

All of it goes with the processes; nothing of the machine's own network is touched.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

NEW_NETWORK, NEW_NAME = 0x40000000, 0x04000000  # CLONE_NEWNET and CLONE_NEWUTS of Linux
CABLE = "cable"
PATIENCE = 20.0
RETRIES = "3"  # after which a host gives up a connection on which nothing comes: 3 s; Linux' own 15 are 15 minutes


def address(number: int) -> str:
    return f"10.77.0.{number + 1}"


def refused() -> str:
    """Why there can be no hosts here, if there can be none."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return "there is no unshare, nsenter or ip"
    command = ["unshare", "--net", "--uts", "ip", "link", "add", CABLE, "type", "veth", "peer", "name", "other"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return told.stderr.strip() if told.returncode else ""


class Hosts:
    """Two hosts, which processes enter that were forked, before anything else."""

    def __init__(self) -> None:
        self._entered, self._joined = os.pipe(), os.pipe()
        self._kept = list[int]()  # networks, which are there as long as somebody has them open

    def enter(self, number: int) -> None:
        """Be on a host of one's own from now on; waits until it is joined to the other."""
        system = ctypes.CDLL(None, use_errno=True)
        if system.unshare(NEW_NETWORK | NEW_NAME):
            raise OSError(ctypes.get_errno(), "unshare")
        socket.sethostname(f"host-{number}")
        Path("/proc/sys/net/ipv4/tcp_retries2").write_text(RETRIES)
        os.environ["GLOO_SOCKET_IFNAME"] = CABLE
        os.write(self._entered[1], b".")
        assert select.select([self._joined[0]], [], [], PATIENCE)[0], "nobody joined the hosts"
        os.read(self._joined[0], 1)

    def join(self, processes: Sequence[int]) -> None:
        """Lay a cable between the hosts of two processes."""
        here = 0
        while here < len(processes):
            assert select.select([self._entered[0]], [], [], PATIENCE)[0], "a process did not enter its host"
            here += len(os.read(self._entered[0], len(processes)))
        self._kept += [os.open(f"/proc/{process}/ns/net", os.O_RDONLY) for process in processes]
        first, second = map(str, processes)
        _ip("link", "add", CABLE, "netns", first, "type", "veth", "peer", "name", CABLE, "netns", second)
        for number, process in enumerate(processes):
            on_host = ("nsenter", "--net", "--target", str(process))
            _ip("address", "add", f"{address(number)}/24", "dev", CABLE, by=on_host)
            for device in ("lo", CABLE):
                _ip("link", "set", device, "up", by=on_host)
        os.write(self._joined[1], b"." * len(processes))

    def close(self) -> None:
        """Let the networks go, with the cable: no host loses its address because the other is gone."""
        for one in (*self._entered, *self._joined, *self._kept):
            os.close(one)


def cut() -> None:
    """Cut the cable of this host."""
    _ip("link", "set", CABLE, "down")


def _ip(*words: str, by: Sequence[str] = ()) -> None:
    subprocess.run([*by, "ip", *words], check=True, capture_output=True)

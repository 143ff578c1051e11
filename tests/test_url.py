"""Which adapter a URL gets, and what is said when there is none."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiobus import AsyncEventBus, Limits
from aiobus.mesh.transport import MeshTransport
from aiobus.transport import Local
from aiobus.url import adapter


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("inproc://", Local),
        ("ipc://desk", MeshTransport),
        ("ipc:///tmp/desk/bus", MeshTransport),
        ("tcp://localhost:7555", MeshTransport),
        ("tcp://localhost:7555,127.0.0.1:7556", MeshTransport),
    ],
)
def test_each_scheme_has_its_adapter(url: str, kind: type) -> None:
    assert type(adapter(url, Limits())) is kind


def test_a_mesh_knows_by_which_url_it_was_asked_for() -> None:
    mesh = adapter("ipc://desk", Limits())
    assert isinstance(mesh, MeshTransport)
    assert mesh.url == "ipc://desk"


def test_making_an_adapter_changes_nothing_on_disk(tmp_path: Path) -> None:
    adapter(f"ipc://{tmp_path}/bus", Limits())
    assert list(tmp_path.iterdir()) == []


WAY_OUT = "'inproc://', 'ipc://name' and 'tcp://host:port' are the transports there are"
REFUSED = [
    ("", WAY_OUT),
    ("desk", WAY_OUT),
    ("inproc", WAY_OUT),
    ("inproc:", WAY_OUT),
    ("ipc:/desk", WAY_OUT),
    ("tcp:localhost:7555", WAY_OUT),
    ("://desk", WAY_OUT),
    ("nats://localhost:4222", WAY_OUT),
    ("IPC://desk", WAY_OUT),
    (" ipc://desk", WAY_OUT),
    (b"ipc://desk", WAY_OUT),
    (None, WAY_OUT),
    (5, WAY_OUT),
    ("inproc://desk", "share the object, or use ipc://desk"),
]


@pytest.mark.parametrize(("url", "way_out"), REFUSED)
def test_what_has_no_adapter_is_named_together_with_the_way_out(url: Any, way_out: str) -> None:
    with pytest.raises(ValueError, match=r"^url=") as caught:
        adapter(url, Limits())
    assert repr(url) in str(caught.value)
    assert way_out in str(caught.value)


@pytest.mark.parametrize(
    ("url", "way_out"),
    [
        ("ipc://", "'ipc://desk', a name of 1-64 characters"),
        ("ipc://a/b", "'ipc:///an/absolute/path' is needed"),
        ("tcp://localhost", "such as tcp://localhost:7555"),
        ("tcp://", "such as tcp://localhost:7555"),
        ("tcp://my_desk:7555", "'my_desk' is neither a host name"),
        ("tcp://0.0.0.0:7555", "no process can connect to 0.0.0.0"),
    ],
)
def test_an_address_that_its_adapter_cannot_use_is_refused_when_the_bus_is_made(
    url: str, way_out: str
) -> None:
    with pytest.raises(ValueError, match=f"{url}.*{way_out}"):
        AsyncEventBus(url)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("ipc:/desk", "ipc://desk"),
        ("ipc:desk", "ipc://desk"),
        ("ipc//desk", "ipc://desk"),
        (" IPC://desk", "ipc://desk"),
        ("ipc:/tmp/desk/bus", "ipc:///tmp/desk/bus"),
        ("tcp:localhost:7555", "tcp://localhost:7555"),
        ("localhost:7555", "tcp://localhost:7555"),
        ("inproc:", "inproc://"),
        ("desk", "ipc://desk"),
        ("nats://localhost:4222", ""),
        ("://desk", ""),
        ("", ""),
        (b"ipc://desk", ""),
    ],
)
def test_a_url_with_a_typing_error_is_told_what_was_probably_meant(url: Any, meant: str) -> None:
    with pytest.raises(ValueError, match=r"^url=") as caught:
        adapter(url, Limits())
    assert str(caught.value).partition("did you mean ")[2] == (f"{meant!r}?" if meant else "")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)


WITHOUT_ZMQ = """
import asyncio, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "zmq":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import aiobus

async def main():
    async with aiobus.AsyncEventBus() as bus:
        await bus.publish(aiobus.Event("TRADE", 1))

asyncio.run(main())
assert "zmq" not in sys.modules
"""


def test_a_bus_in_one_process_needs_no_zmq() -> None:
    done = run(WITHOUT_ZMQ)
    assert (done.returncode, done.stderr) == (0, "")


def test_making_a_bus_in_one_process_imports_no_zmq() -> None:
    done = run("import aiobus, sys; aiobus.AsyncEventBus(); assert 'zmq' not in sys.modules")
    assert (done.returncode, done.stderr) == (0, "")

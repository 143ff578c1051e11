"""What every test gets: both event loops, and proof that it left no task behind."""

import asyncio
import functools
import importlib
import inspect
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from actors import Nursery, tcp_url
from actors import nursery as make_nursery
from desks import NETWORKS, TRANSPORTS, Desk, open_desk
from hypothesis import settings

from aiobus import AsyncEventBus
from aiobus.virtual_loop import VirtualLoop

settings.register_profile("test", max_examples=40, deadline=None)
settings.register_profile("soak", max_examples=2_000, deadline=None)
settings.load_profile("test")


REAL: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loops of a test: both real ones, if no marker of pyproject.toml says otherwise."""
    if item.get_closest_marker("virtual"):
        return {"virtual": VirtualLoop}
    if item.get_closest_marker("transports"):
        return {**REAL, "virtual": VirtualLoop}
    if item.get_closest_marker("one_loop"):
        return {"uvloop": REAL["uvloop"]}
    return REAL


def pytest_configure() -> None:
    """A shell has its background jobs ignore SIGINT, nohup has all ignore SIGHUP, and so would the
    bots they start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Two for each processor: more than half of its time a test waits for other processes."""
    return 2 * (os.cpu_count() or 1)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Of the tests of a whole run, each worker imports a part of its own first. All of them collect
    all tests, and the first import of each, which rewrites its assertions, takes ten times as long
    as that of a file which another worker has rewritten meanwhile.
    """
    worker = getattr(session.config, "workerinput", None)  # of pytest-xdist
    if worker is None or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    number, count = int(worker["workerid"][2:]), worker["workercount"]
    names = sorted(each.stem for each in Path(__file__).parent.glob("test_*.py"))
    for name in names[number::count]:
        with suppress(Exception, pytest.skip.Exception):  # which are seen when it is collected
            importlib.import_module(name)


TEST_SECONDS = float(os.environ.get("TEST_SECONDS", "50"))
"""Of a coroutine test, which may have more by its marker `timeout`. The signal of pytest-timeout
comes later, and does not reach one that only waits on uvloop: such a test once hung and could not
even be named.
"""
MARGIN = 10.0
"""Seconds of a test's marker `timeout` that are left to its fixtures."""


def bounded(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    """The test, which fails where it waits when its time is over."""

    @functools.wraps(test)
    async def run(**fixtures: Any) -> None:
        async with asyncio.timeout(seconds):
            await test(**fixtures)

    return run


LEFT_OUT = {
    "paired": ("[asyncio-tcp", "[uvloop-ipc"),
    "transports": (
        *("[asyncio-memory", "[uvloop-memory"),
        *("[virtual-inproc", "[virtual-ipc", "[virtual-tcp", "[virtual]"),
    ),
}
"""What of a marked test does not run."""
ONE_LOOP_IS_ENOUGH = ("[asyncio-keys", "[virtual-keys")
"""Keys change what ZeroMQ's own threads send, and not how a loop is used."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the markers of pyproject.toml say, and bound what is left."""
    left_out = [
        item
        for item in items
        for marker, variants in LEFT_OUT.items()
        if item.get_closest_marker(marker) and any(each in item.name for each in variants)
    ]
    for item in items:
        if "-keys" in item.name and item.get_closest_marker("paired"):
            item.add_marker("slow")  # it takes seconds, and ran on tcp
    left_out += [item for item in items if any(each in item.name for each in ONE_LOOP_IS_ENOUGH)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("timeout")
            most = 0.0 if marker is None else marker.args[0] - MARGIN
            item.obj = bounded(item.obj, max(TEST_SECONDS, most))


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    """Whatever the test started has ended when it is over."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


class HandClock:
    """A clock in the place of `elapsed`, which a test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def line_logged(text: str) -> Iterator[asyncio.Event]:
    """An event that is set once the package logs a line with `text` in it."""
    logged = asyncio.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                logged.set()

    watch = Watch()
    logging.getLogger("aiobus").addHandler(watch)
    try:
        yield logged
    finally:
        logging.getLogger("aiobus").removeHandler(watch)


@pytest.fixture
def logged() -> Callable[[str], AbstractContextManager[asyncio.Event]]:
    """`with logged("text") as said: ...; await said.wait()`."""
    return line_logged


@pytest.fixture
async def bus(no_task_is_left: None) -> AsyncIterator[AsyncEventBus]:
    """An open bus named `desk`. A handler that fails, fails the test."""
    async with AsyncEventBus(name="desk", on_error="raise") as bus:
        yield bus


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory of this test; pytest's own have paths that are too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="ab", dir="/tmp") as made:
        yield Path(made)


@pytest.fixture(params=["ipc", "tcp"])
def url(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """An address of this test. At the end no file of it is left."""
    yield tcp_url() if request.param == "tcp" else f"ipc://{folder}/d"
    left = list((folder / "d").glob("*"))
    assert not left, f"files left behind: {left}"


@pytest.fixture
async def nursery(request: pytest.FixtureRequest, no_task_is_left: None) -> AsyncIterator[Nursery]:
    """Makes processes, which have ended before `url` looks for files that were left."""
    if "url" in request.fixturenames:
        request.getfixturevalue("url")
    async with make_nursery() as made:
        yield made


@pytest.fixture(params=TRANSPORTS)
async def desk(request: pytest.FixtureRequest, no_task_is_left: None) -> AsyncIterator[Desk]:
    """Buses of one transport, each in turn."""
    async with open_desk(request.param) as desk:
        yield desk


@pytest.fixture(params=NETWORKS)
async def mesh(request: pytest.FixtureRequest, no_task_is_left: None) -> AsyncIterator[Desk]:
    """The same for those that have several buses."""
    async with open_desk(request.param) as desk:
        yield desk

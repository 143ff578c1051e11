"""The plugin of `pytest_plugins = ["aiobus.testing"]`: the fixtures `bus`, `network` and
`virtual_time`.

Owns how a failing handler fails its test, the seed of a test's faults, and that a test in virtual
time is on the right loop and leaves the process in no way. Must not know how coroutine tests are
run: pytest-asyncio or anyio do that, or else `aiobus.testing.runner`.

PYTEST_DONT_REWRITE: nothing is asserted here.
"""

import asyncio
import functools
import inspect
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest

from aiobus.bus import AsyncEventBus
from aiobus.confinement import Confinement, confined
from aiobus.testing.network import MemoryNetwork
from aiobus.testing.runner import VIRTUAL_TIME, Runner
from aiobus.virtual_loop import VirtualLoop

__all__ = [
    "SEED",
    "network",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
    "virtual_time",
]

SEED = "AIOBUS_SEED"
"""The environment variable that sets the seed of every `network`."""

_buses = pytest.StashKey[list[AsyncEventBus]]()
_networks = pytest.StashKey[MemoryNetwork]()


def pytest_configure(config: pytest.Config) -> None:
    """Make `bus` a fixture of the plugin that runs coroutine tests."""
    fixture: Callable[..., Any] = pytest.fixture
    if config.pluginmanager.hasplugin("asyncio"):
        import pytest_asyncio

        fixture = pytest_asyncio.fixture  # strict mode accepts no other
    else:
        config.pluginmanager.register(Runner(), "aiobus.testing.runner")
    fixtures = ModuleType("aiobus.testing.fixtures")
    fixtures.bus = fixture(name="bus")(_bus)  # type: ignore[attr-defined]
    config.pluginmanager.register(fixtures)


class _OnVirtualLoop:
    """Has pytest-asyncio (1.4 or newer) run a test on a VirtualLoop."""

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_asyncio_loop_factories(self) -> dict[str, type[VirtualLoop]]:
        return {"virtual": VirtualLoop}


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-asyncio looks
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, None, None]:
    """Mark a coroutine test that uses a fixture of this plugin for pytest-asyncio, so that strict
    mode runs it too, unless the test has the mark of another plugin. Choose its loop.
    """
    _mark(metafunc)
    if VIRTUAL_TIME not in metafunc.fixturenames:
        return (yield)
    # Only for this test: where there is such a hook, it has to name the loops of every test.
    plugins, choice = metafunc.config.pluginmanager, _OnVirtualLoop()
    plugins.register(choice)
    try:
        return (yield)
    finally:
        plugins.unregister(choice)


def _mark(metafunc: pytest.Metafunc) -> None:
    test, marked = metafunc.function, metafunc.definition.get_closest_marker
    if not (
        inspect.iscoroutinefunction(test)
        and {"bus", "network", VIRTUAL_TIME}.intersection(metafunc.fixturenames)
        and metafunc.config.pluginmanager.hasplugin("asyncio")
        and "anyio_backend" not in metafunc.fixturenames
        and not any(marked(name) for name in ("asyncio", "anyio", "trio"))
    ):
        return
    metafunc.definition.add_marker("asyncio")
    pytest.mark.asyncio(getattr(test, "__func__", test))  # for the tests to be made of it


async def _bus(request: pytest.FixtureRequest) -> AsyncIterator[AsyncEventBus]:
    """An open bus on `inproc://`, without others. A handler that fails, fails the test."""
    async with AsyncEventBus(on_error="raise") as bus:
        request.node.stash.setdefault(_buses, []).append(bus)
        yield bus


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[MemoryNetwork]:
    """A network in memory. Each run has another seed, which a failing test reports: set AIOBUS_SEED
    to it to repeat the same faults.
    """
    seed = int(os.environ.get(SEED) or random.randrange(2**32))
    request.node.stash[_networks] = network = MemoryNetwork(seed=seed)
    yield network
    del request.node.stash[_networks]


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> None:
    """The coroutine test, and the coroutine fixtures that it uses, run on a VirtualLoop: sleeps and
    timeouts take no real time. A call that leaves the process fails the test, as in `run_virtual`.
    """
    if not inspect.iscoroutinefunction(request.function):
        pytest.fail("virtual_time is for coroutine tests: make this one `async def`", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A coroutine test is the body of its bus: it is cancelled when a handler fails. In virtual
    time it ends with the first call that leaves the process.
    """
    buses = item.stash.get(_buses, [])
    test = getattr(item, "obj", None)
    is_virtual = VIRTUAL_TIME in getattr(item, "fixturenames", ())
    if not (buses or is_virtual) or not inspect.iscoroutinefunction(test):
        return (yield)
    item.obj = _as_body(test, buses, is_virtual=is_virtual)  # type: ignore[attr-defined]
    try:
        with confined(Confinement()) if is_virtual else nullcontext():
            return (yield)
    finally:
        item.obj = test  # type: ignore[attr-defined]


def _as_body(
    test: Callable[..., Awaitable[None]], buses: list[AsyncEventBus], *, is_virtual: bool
) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def body(*args: Any, **kwargs: Any) -> None:
        if is_virtual and not isinstance(loop := asyncio.get_running_loop(), VirtualLoop):
            pytest.fail(
                f"virtual_time: this test runs on {type(loop).__name__}, and needs a VirtualLoop of"
                " its own. pytest-asyncio gives it one from version 1.4 on; anyio does not",
                pytrace=False,
            )
        for bus in buses:
            bus._life.enter_body()
        try:
            await test(*args, **kwargs)
        finally:
            for bus in buses:
                bus._life.raise_failure(again=bus._life.leave_body())

    return body


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report the seed of a test that failed."""
    report = yield
    network = item.stash.get(_networks, None)
    if report.failed and network is not None:
        text = f"The same faults again: {SEED}={network.seed} pytest '{item.nodeid}'"
        report.sections.append(("aiobus", text))
    return report

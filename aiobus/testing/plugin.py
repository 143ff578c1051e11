"""The plugin of `pytest_plugins = ["aiobus.testing"]`: the fixtures `bus` and `network`.

Owns how a failing handler fails its test, and the seed of a test's faults. Must not know how
coroutine tests are run: pytest-asyncio or anyio do that, or else `aiobus.testing.runner`.

PYTEST_DONT_REWRITE: nothing is asserted here.
"""

import functools
import inspect
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from types import ModuleType
from typing import Any

import pytest

from aiobus.bus import AsyncEventBus
from aiobus.testing.network import MemoryNetwork
from aiobus.testing.runner import Runner

__all__ = [
    "SEED",
    "network",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
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


@pytest.hookimpl(tryfirst=True)  # before pytest-asyncio looks
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Mark a coroutine test that uses `bus` or `network` for pytest-asyncio, so that strict mode
    runs it too, unless the test has the mark of another plugin.
    """
    test, marked = metafunc.function, metafunc.definition.get_closest_marker
    if not (
        inspect.iscoroutinefunction(test)
        and {"bus", "network"}.intersection(metafunc.fixturenames)
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A coroutine test is the body of its bus: it is cancelled when a handler fails."""
    buses = item.stash.get(_buses, [])
    test = getattr(item, "obj", None)
    if not buses or not inspect.iscoroutinefunction(test):
        return (yield)
    item.obj = _as_body(test, buses)  # type: ignore[attr-defined]
    try:
        return (yield)
    finally:
        item.obj = test  # type: ignore[attr-defined]


def _as_body(
    test: Callable[..., Awaitable[None]], buses: list[AsyncEventBus]
) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def body(*args: Any, **kwargs: Any) -> None:
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

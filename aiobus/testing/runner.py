"""Runs coroutine tests and their coroutine fixtures if no other plugin does.

Owns one loop per test, which is a VirtualLoop if the test asks for VIRTUAL_TIME. Must not know of
buses. Tests with a mark for anyio are left to anyio; with pytest-asyncio this is not used.

PYTEST_DONT_REWRITE: nothing is asserted here.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any

import pytest

from aiobus.virtual_loop import VirtualLoop

__all__ = ["VIRTUAL_TIME", "Runner"]

VIRTUAL_TIME = "virtual_time"
"""The fixture that has a test run on a VirtualLoop."""

_runner = pytest.StashKey[asyncio.Runner]()


class Runner:
    """A plugin of pytest."""

    @pytest.hookimpl
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Run a test that is a coroutine function and that no other plugin has run."""
        if not inspect.iscoroutinefunction(pyfuncitem.obj):
            return None
        arguments = pyfuncitem._fixtureinfo.argnames
        named = {name: pyfuncitem.funcargs[name] for name in arguments}
        _run(pyfuncitem, pyfuncitem.obj(**named))
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, Any, Any]:
        """Set up a coroutine fixture in the loop of the test that asks for it."""
        function = fixturedef.func
        is_ours = fixturedef.scope == "function" and "anyio_backend" not in request.fixturenames
        if is_ours and inspect.isasyncgenfunction(function):
            fixturedef.func = _generator(request.node, function)  # type: ignore[misc]
        elif is_ours and inspect.iscoroutinefunction(function):
            fixturedef.func = _function(request.node, function)  # type: ignore[misc]
        try:
            return (yield)
        finally:
            fixturedef.func = function  # type: ignore[misc]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """Close the loop, once all fixtures are torn down."""
        try:
            return (yield)
        finally:
            if (runner := item.stash.get(_runner, None)) is not None:
                del item.stash[_runner]
                runner.close()


def _run(node: pytest.Item, coroutine: Coroutine[Any, Any, Any]) -> Any:
    if _runner not in node.stash:
        is_virtual = VIRTUAL_TIME in getattr(node, "fixturenames", ())
        node.stash[_runner] = asyncio.Runner(loop_factory=VirtualLoop if is_virtual else None)
    return node.stash[_runner].run(coroutine)


def _function(node: pytest.Item, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return _run(node, function(*args, **kwargs))

    return call


def _generator(node: pytest.Item, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Iterator[Any]:
        values = function(*args, **kwargs)

        async def step() -> Any:
            return await anext(values, None)

        yield _run(node, step())
        _run(node, step())

    return call

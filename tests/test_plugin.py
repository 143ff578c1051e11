"""A user's tests with `pytest_plugins = ["aiobus.testing"]`, each suite a pytest of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "testing.md").read_text()

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

CONFTEST = """
from aiobus.testing import MemoryNetwork  # before it is a plugin, and no warning

pytest_plugins = ["aiobus.testing"]
"""
SUITE = """
import asyncio
from collections.abc import AsyncIterator
import pytest
{imports}
from aiobus import AsyncEventBus, Event

@{fixture}
async def seen(bus: AsyncEventBus) -> AsyncIterator[list[Event]]:
    seen: list[Event] = []
    subscription = await bus.subscribe("FILL", seen.append)
    yield seen
    await subscription.unsubscribe()


@{fixture}
async def pair(bus: AsyncEventBus) -> tuple[Event, Event]:
    return Event("FILL", 1), Event("FILL", 2)


async def test_fixtures_and_the_test_share_a_loop(bus, seen, pair) -> None:
    for event in pair:
        await bus.publish(event)
    await bus.settle()
    assert seen == list(pair)


class TestOfAClass:
    async def test_runs_too(self, bus, seen) -> None:
        await bus.publish(Event("FILL", 3))
        await bus.settle()
        assert [event.data for event in seen] == [3]


@pytest.mark.parametrize("number", [1, 2])
async def test_without_a_bus_runs_too(number: int) -> None:
    await asyncio.sleep(0)


def test_without_a_loop_runs_too(network) -> None:
    assert network.seed >= 0


def fail(event: Event) -> None:
    raise ValueError("no fill like this")


async def test_that_settles_fails_with_its_handler(bus) -> None:
    await bus.subscribe("FILL", fail)
    await bus.publish(Event("FILL", 1))
    await bus.settle()


async def test_that_waits_for_ever_fails_with_its_handler(bus) -> None:
    await bus.subscribe("FILL", fail)
    await bus.publish(Event("FILL", 1))
    await bus.wait_for("NEVER")


async def test_may_expect_a_failure(bus) -> None:
    await bus.subscribe("FILL", fail)
    await bus.publish(Event("FILL", 1))
    with pytest.raises(ValueError, match="no fill"):
        await bus.settle()
"""
FAULTS = """
from aiobus import Event
from aiobus.testing import Faults


async def test_what_is_lost(network) -> None:
    async with network.bus("feed") as feed, network.bus("bot") as bot:
        await bot.subscribe("A", lambda event: None)
        heard = []
        network.faults = Faults(loss=lambda message: 0.5 * (message.kind == "events"),
                                delay=lambda message: heard.append(message) or 0)
        for number in range(64):
            await feed.publish(Event("A", number))
            await feed.flush(0)
        network.faults = Faults()
        await network.settle()
        print("lost", network.lost)
        assert False, "to be told the seed"
"""
TIDY = ["-W", "error", "-p", "no:cacheprovider", "-p", "no:xdist"]
SCOPE = ["-o", "asyncio_default_fixture_loop_scope=function"]
WAYS = {
    "auto": ["-o", "asyncio_mode=auto", *SCOPE],
    "strict": ["-o", "asyncio_mode=strict", *SCOPE],
    "without": ["-p", "no:asyncio"],
}
DEFAULT = ["-W", "default::pytest.PytestDeprecationWarning"]  # its own, of a scope that is unset


def suite(way: str) -> str:
    """The tests, marked if they have to be."""
    if way != "strict":
        return SUITE.format(imports="", fixture="pytest.fixture")
    text = SUITE.format(imports="import pytest_asyncio", fixture="pytest_asyncio.fixture")
    return re.sub(
        "^( *)(async def test)", r"\1@pytest.mark.asyncio\n\1\2", text, flags=re.MULTILINE
    )


@pytest.mark.parametrize("way", WAYS)
def test_coroutine_tests_get_a_bus_and_fail_with_its_handlers(
    pytester: pytest.Pytester, way: str
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(suite(way))
    result = pytester.runpytest_subprocess(*TIDY, *WAYS[way], timeout=60)
    result.assert_outcomes(passed=6, failed=2)
    for test in ("that_settles", "that_waits_for_ever"):
        result.stdout.re_match_lines_random(
            [f"_+ test_{test}_fails", f"FAILED .*test_{test}_fails"]
        )
    raised = [line for line in result.outlines if line == "E       ValueError: no fill like this"]
    assert len(raised) == 2
    result.stdout.no_fnmatch_line("*Warning*")


def test_a_failure_tells_the_seed_and_the_seed_brings_the_same_faults(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(FAULTS)

    def run() -> tuple[str, str]:
        result = pytester.runpytest_subprocess(*TIDY, "-p", "no:asyncio", timeout=50)
        result.assert_outcomes(failed=1)
        text = result.stdout.str()
        (seed,) = re.findall(r"AIOBUS_SEED=(\d+) pytest 'test_.*::test_what_is_lost'", text)
        (lost,) = re.findall(r"lost (\d+)", text)
        return seed, lost

    monkeypatch.delenv("AIOBUS_SEED", raising=False)
    first = run()
    monkeypatch.setenv("AIOBUS_SEED", first[0])
    assert run() == first


def test_the_page_about_testing_shows_tests_that_pass(pytester: pytest.Pytester) -> None:
    shown = dict(re.findall(r"```python (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
    for name, text in shown.items():
        (pytester.path / name).write_text(text)
    for way in (DEFAULT, WAYS["auto"], WAYS["without"]):
        result = pytester.runpytest_subprocess(*TIDY, *way, timeout=60)
        result.assert_outcomes(passed=len(shown) - 1)


UNMARKED = """
import pytest

@pytest.mark.parametrize("number", [1, 2])
async def test_parametrized(bus, number) -> None:
    await bus.settle()

class TestOfAClass:
    async def test_method(self, network) -> None:
        assert network.seed >= 0

@pytest.fixture
def silent(bus):
    return bus

async def test_that_asks_for_it_indirectly(silent) -> None:
    await silent.settle()

async def test_of_no_plugin_we_know() -> None:
    pass
"""


def test_in_strict_mode_those_that_ask_for_a_bus_or_network_need_no_mark_and_others_do(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(UNMARKED)
    result = pytester.runpytest_subprocess(*TIDY, *DEFAULT, timeout=60)
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*async def functions are not natively supported*"])


def test_the_network_needs_no_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; from aiobus.testing import MemoryNetwork"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=50)


VIRTUAL = """
import asyncio
import os
import time
import pytest
{imports}
from aiobus import AsyncEventBus, Event, RequestTimeout, VirtualLoop, clock
from aiobus.virtual_loop import START

BEGAN = time.perf_counter()


@{fixture}
async def seen(bus: AsyncEventBus) -> list[Event]:
    seen = []
    await bus.subscribe("FILL", seen.append)
    return seen


async def test_a_day_takes_no_time(virtual_time) -> None:
    await asyncio.sleep(86_400)
    assert clock.time() == START + 86_400
    assert time.perf_counter() - BEGAN < 3_600


async def test_fixtures_share_its_loop(bus, seen, virtual_time) -> None:
    assert isinstance(asyncio.get_running_loop(), VirtualLoop)
    await bus.publish(Event("FILL", 1))
    await bus.settle()
    assert seen[0].timestamp == START
    await bus.subscribe("ORDER", lambda event: None)
    with pytest.raises(RequestTimeout):
        await bus.request(Event("ORDER", 1), "FILL", timeout=3_600)


@pytest.mark.usefixtures("virtual_time")
@pytest.mark.parametrize("number", [1, 2])
async def test_a_mark_will_do(network, number: int) -> None:
    async with network.bus("feed"), network.bus("bot"):
        await asyncio.sleep(600)
    assert asyncio.get_running_loop().time() >= 600


async def test_another_runs_as_ever(bus) -> None:
    assert not isinstance(asyncio.get_running_loop(), VirtualLoop)
    os.system("true")


def test_after_it_nothing_is_refused(network) -> None:
    assert os.system("true") == 0


async def test_a_call_that_leaves_fails_it(bus, virtual_time) -> None:
    def on_fill(event: Event) -> None:
        os.system("true")

    await bus.subscribe("FILL", on_fill)
    try:
        await bus.publish(Event("FILL", 1))
        await bus.settle()
    except Exception:
        pass


async def test_a_call_that_leaves_fails_it_also_if_it_is_skipped_then(virtual_time) -> None:
    try:
        os.system("true")
    except Exception:
        pytest.skip("no gateway")


async def test_what_waits_for_ever_fails_and_says_where(virtual_time) -> None:
    await asyncio.Event().wait()


def test_that_is_no_coroutine_fails(virtual_time) -> None:
    pass
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_coroutine_test_that_asks_for_virtual_time_runs_on_a_virtual_loop(
    pytester: pytest.Pytester, way: str
) -> None:
    pytester.makeconftest(CONFTEST)
    strict = way == "strict"
    pytester.makepyfile(
        VIRTUAL.format(
            imports="import pytest_asyncio" if strict else "",
            fixture="pytest_asyncio.fixture" if strict else "pytest.fixture",
        )
    )
    result = pytester.runpytest_subprocess(*TIDY, *WAYS[way], timeout=60)
    result.assert_outcomes(passed=6, failed=3, errors=1)
    result.stdout.re_match_lines_random(
        [
            r"E +aiobus\.errors\.LeavesProcess: os\.system\(b'true'\) in .*on_fill was refused",
            r"E +aiobus\.errors\.Deadlock: nothing can ever happen again after 0 s",
            r"virtual_time is for coroutine tests: make this one `async def`",
        ]
    )


OTHER_LOOP = """
import pytest

pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"

async def test_of_anyio(virtual_time) -> None:
    pass
"""


def test_virtual_time_where_another_plugin_runs_the_test_fails_and_says_why(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(OTHER_LOOP)
    result = pytester.runpytest_subprocess(*TIDY, *WAYS["strict"], timeout=60)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*virtual_time: this test runs on *, and needs a VirtualLoop*"])


CHOSEN = """
import asyncio
import pytest

pytest_plugins = ["aiobus.testing"]

class Chosen(asyncio.SelectorEventLoop):
    pass

def pytest_asyncio_loop_factories(config, item):
    return {"one": Chosen, "other": Chosen}
"""
BESIDE = """
import asyncio
from aiobus import VirtualLoop

async def test_chosen(bus) -> None:
    assert type(asyncio.get_running_loop()).__name__ == "Chosen"

async def test_virtual(bus, virtual_time) -> None:
    assert isinstance(asyncio.get_running_loop(), VirtualLoop)
"""


def test_virtual_time_stands_beside_the_loops_that_a_conftest_chooses(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest(CHOSEN)
    pytester.makepyfile(BESIDE)
    result = pytester.runpytest_subprocess(*TIDY, *WAYS["auto"], timeout=60)
    result.assert_outcomes(passed=3)

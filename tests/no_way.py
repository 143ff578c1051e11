"""What might carry an order out of a replay: a row for each public callable, and other ways.

`python no_way.py attack PLAN` makes each attempt of the plan, in a replay or live, and says how it
went. `python no_way.py gateway IPC TCP LEDGER` is a gateway that notes each order. What arrived is
judged by `test_no_way_out.py`, and never by what an attempt says.
"""

import asyncio
import contextlib
import ctypes  # noqa: F401 - loaded before: what a replay refuses is not the import
import functools
import importlib
import inspect
import json
import logging
import math
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import zmq
from journals import entries, entry, make

import aiobus
import aiobus.testing
from aiobus import AsyncEventBus, Event, Journal, Replay, VirtualLoop, clock, run_virtual

OFFERED: dict[str, ModuleType] = {"": aiobus, "testing": aiobus.testing, "clock": clock}
"""Where users find what they call."""
BASES = ("builtins", "enum", "typing")
RESUMED_SECONDS = 3.0
"""In which a gateway has executed what the journal of a bus that has come back has for it."""


def public_callables() -> Iterator[str]:
    """Every class and function that is offered, and each public method of the classes, inherited
    ones as well.
    """
    for prefix, module in OFFERED.items():
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.ismodule(value) or not callable(value):
                continue
            full = f"{prefix}.{name}" if prefix else name
            yield full
            if inspect.isclass(value):
                yield from (f"{full}.{each}" for each in _methods(value))


def _methods(kind: type) -> Iterator[str]:
    for name in dir(kind):
        owner = next((base for base in kind.__mro__ if name in vars(base)), object)
        if not name.startswith("_") and owner.__module__ not in BASES:
            found = vars(owner)[name]
            if callable(getattr(found, "__func__", found)):
                yield name


class Plan(NamedTuple):
    """Where the world is."""

    ipc: str
    tcp: str
    http: int
    udp: int
    pull: str
    fifo: str
    device: str
    folder: str

    @property
    def recording(self) -> str:
        return f"{self.folder}/desk.db"

    @property
    def taped(self) -> str:
        return f"{self.folder}/taped.db"

    @property
    def journal(self) -> str:
        return f"{self.folder}/journaled.db"

    @property
    def site(self) -> str:
        return f"http://127.0.0.1:{self.http}/order"


class Here:
    """What a strategy has in its hands when a trade comes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        # These were there before.
        self.line = socket.create_connection(("127.0.0.1", plan.http))
        self.push = zmq.Context.instance().socket(zmq.PUSH)
        self.push.set(zmq.IMMEDIATE, 1)
        self.push.connect(plan.pull)
        assert self.push.poll(5_000, zmq.POLLOUT), "not connected"
        self.bus: AsyncEventBus
        self.event: Event
        self.replay: Replay | None = None

    def order(self) -> Event:
        """What must not arrive."""
        return Event("ORDER", {"side": "buy", "quantity": 1}, key="BTCUSDT")

    @contextlib.asynccontextmanager
    async def objects(self) -> Any:
        """An object of each class whose methods are called, by its name."""
        subscription = await self.bus.subscribe("QUOTE", lambda event: None)
        with Journal(self.plan.recording) as journal:
            network = aiobus.testing.MemoryNetwork()
            yield {
                "AsyncEventBus": self.bus,
                "Replay": self.replay,
                "Subscription": subscription,
                "VirtualLoop": asyncio.get_running_loop(),
                "Journal": journal,
                "testing.MemoryNetwork": network,
                "Recording": aiobus.record(self.bus, f"{self.plan.folder}/{clock.token()}.db"),
            }


Attempt = Callable[[Here], Awaitable[object]]
ROWS: dict[str, Attempt] = {}
"""By public callable."""
WAYS: dict[str, Attempt] = {}
"""By what is no callable of the package."""
REACHES: dict[str, str] = {}
"""What a live attempt reaches: "gateway", "http", "udp", "zmq", "fifo" or "device"."""


def row(name: str, reaches: str = "") -> Callable[[Attempt], Attempt]:
    """A decorator: the attempt to get an order out by this callable."""
    return functools.partial(_enter, ROWS, name, reaches)


def way(name: str, reaches: str) -> Callable[[Attempt], Attempt]:
    """The same for what is no callable of the package."""
    return functools.partial(_enter, WAYS, name, reaches)


def _enter(table: dict[str, Attempt], name: str, reaches: str, attempt: Attempt) -> Attempt:
    assert name not in table, name
    table[name] = attempt
    if reaches:
        REACHES[name] = reaches
    return attempt


def plainly(owner: str, names: str) -> None:
    """Rows of callables of `owner` (a class or module; "" for the package) that open nothing: they
    are called with an order, whatever they make of it.
    """
    for each in names.split():
        name = f"{owner}.{each}" if owner else each
        row(name)(functools.partial(_call, name))


async def _call(name: str, here: Here) -> None:
    async with here.objects() as objects:
        owner, _, method = name.rpartition(".")
        found = objects.get(owner)
        target = _resolved(name) if found is None else getattr(found, method)
        for arguments in ((), (here.order(),), ("ORDER",), (1.0,), (here.order(), "FILL")):
            with contextlib.suppress(Exception):
                result = target(*arguments)
                if inspect.isawaitable(result):
                    await asyncio.wait_for(result, 1)


def _resolved(name: str) -> Any:
    first, *rest = name.split(".")
    found: Any = OFFERED.get(first) or getattr(aiobus, first)
    for each in rest:
        found = getattr(found, each)
    return found


# A bus that is there, and a second one.


@row("AsyncEventBus.publish", reaches="gateway")
async def publish(here: Here) -> None:
    await here.bus.publish(here.order())


@row("AsyncEventBus.publish_nowait", reaches="gateway")
async def publish_nowait(here: Here) -> None:
    here.bus.publish_nowait(here.order())


@row("AsyncEventBus.request", reaches="gateway")
async def request(here: Here) -> None:
    await here.bus.request(here.order(), "ACK", timeout=5)


@way("a request for the gateway alone", reaches="gateway")
async def request_of_one(here: Here) -> None:
    await here.bus.request(here.order(), "ACK", to="gateway", timeout=5)


@row("AsyncEventBus.reply", reaches="gateway")
async def reply(here: Here) -> None:
    await here.bus.reply(here.event, here.order())


@row("AsyncEventBus.flush", reaches="gateway")
async def flush(here: Here) -> None:
    await here.bus.publish(here.order())
    assert await here.bus.flush() == []


@row("AsyncEventBus.close", reaches="gateway")
async def close(here: Here) -> None:
    await here.bus.publish(here.order())
    here.bus.stats()
    closing = asyncio.ensure_future(here.bus.close())
    await asyncio.sleep(0.1)
    closing.cancel()


@way("the replayed event, published", reaches="gateway")
async def publish_replayed(here: Here) -> None:
    here.event.type = "ORDER"
    await here.bus.publish(here.event)


@row("AsyncEventBus", reaches="gateway")
async def second_bus(here: Here) -> None:
    async with AsyncEventBus(here.plan.ipc, name="second") as bus:
        await bus.publish(here.order())


@row("AsyncEventBus.start", reaches="gateway")
async def second_bus_on_tcp(here: Here) -> None:
    bus = AsyncEventBus(here.plan.tcp, name="second")
    await bus.start()
    await bus.publish(here.order())
    await bus.close()


@way("a bus with a journal", reaches="gateway")
async def journaled_bus(here: Here) -> None:
    path = f"{here.plan.folder}/{clock.token()}.db"
    async with AsyncEventBus(here.plan.ipc, name="journaled", journal=path) as bus:
        await bus.publish(here.order())


@way("a journal that the next start of its bus goes on with", reaches="gateway")
async def journal_of_a_bus(here: Here) -> None:
    async with AsyncEventBus(name="journaled", journal=here.plan.journal) as bus:
        await bus.publish(here.order())


@way("a journal of the replayed bus itself", reaches="")
async def journal_of_the_replayed_bus(here: Here) -> None:
    await here.bus.close()
    bus = AsyncEventBus(Replay(here.plan.recording), name="journaled", journal=here.plan.journal)
    await bus.start()
    await bus.publish(here.order())
    await bus.close()


async def resume(plan: Plan) -> None:
    """The next live start of the bus with that journal, until the gateway has executed an order."""
    bus = AsyncEventBus(plan.ipc, name="journaled", journal=plan.journal)
    is_executed = asyncio.Event()

    @bus.on("ACK")
    def on_ack(ack: Event) -> None:
        is_executed.set()

    async with bus:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESUMED_SECONDS):
                await is_executed.wait()


@way("a bus in a thread", reaches="gateway")
async def bus_in_a_thread(here: Here) -> None:
    thread = threading.Thread(target=lambda: asyncio.run(second_bus(here)))
    thread.start()
    await asyncio.get_running_loop().run_in_executor(None, thread.join)


@row("republish", reaches="")
async def republish(here: Here) -> None:
    plan = here.plan
    await aiobus.republish(plan.recording, plan.ipc, types="*", to="gateway", speed=None)


@row("record")
async def record(here: Here) -> None:
    async with aiobus.record(here.bus, f"{here.plan.folder}/{clock.token()}.db") as recording:
        await here.bus.publish(here.order())
        await recording.flush()


@row("run")
async def run(here: Here) -> None:
    async def bot(bus: AsyncEventBus) -> None:
        await bus.publish(here.order())

    aiobus.run(bot, here.plan.ipc, "second", until="return")


@row("Keeper", reaches="gateway")
async def keeper(here: Here) -> None:
    path = f"{here.plan.folder}/{clock.token()}.db"
    async with aiobus.Keeper(here.plan.ipc, path, types="ORDER") as keeper:
        await keeper.bus.publish(here.order())


@row("Keeper.forget")
async def forget(here: Here) -> None:
    keeper = aiobus.Keeper(here.plan.ipc, f"{here.plan.folder}/{clock.token()}.db")
    with contextlib.suppress(aiobus.BusError):
        await keeper.forget("ORDER")


@row("run_virtual")
async def nested(here: Here) -> None:
    def inner() -> Any:
        return second_bus(here)

    run_virtual(inner)


@row("what_if")
async def what_if(here: Here) -> None:
    def strategy(bus: AsyncEventBus) -> Any:
        return second_bus(here)

    aiobus.what_if(here.plan.recording, strategy, replaces="gateway")


async def taped(path: str) -> None:
    """Record a strategy that does no harm."""

    async def strategy(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda trade: bus.publish(Event("SIGNAL", trade.data)))

    async with (
        AsyncEventBus(name="strategy") as bus,
        aiobus.record(bus, path, attach=strategy) as recording,
    ):
        await bus.publish(Event("TRADE", 1))
        await bus.settle()
        await recording.flush()


def verified(here: Here, judge: Callable[..., object]) -> None:
    """Run another strategy on that, which sends an order by a bus of its own."""

    async def strategy(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda trade: second_bus(here))

    judge(here.plan.taped, strategy)


@row("verify")
async def verify(here: Here) -> None:
    verified(here, aiobus.verify)


@row("assert_replays")
async def assert_replays(here: Here) -> None:
    verified(here, aiobus.assert_replays)


@row("testing.assert_replays")
async def assert_replays_in_tests(here: Here) -> None:
    verified(here, aiobus.testing.assert_replays)


@row("testing.MemoryNetwork.bus")
async def memory_bus(here: Here) -> None:
    async with aiobus.testing.MemoryNetwork().bus("second") as bus:
        await bus.publish(here.order())


@row("Replay")
async def second_replay(here: Here) -> None:
    async with AsyncEventBus(Replay(here.plan.recording), name="second") as bus:
        await bus.publish(here.order())


@row("Replay.beside")
async def beside(here: Here) -> None:
    if here.replay is not None:
        async with AsyncEventBus(here.replay.beside(), name="second") as bus:
            await bus.publish(here.order())


@row("Replay.pause")
async def pause(here: Here) -> None:
    if here.replay is not None:
        here.replay.pause()
        try:
            await second_bus(here)
        finally:
            here.replay.resume()


@row("VirtualLoop.stand_still")
async def stand_still(here: Here) -> None:
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualLoop):
        loop.stand_still(True)
        try:
            await second_bus(here)
        finally:
            loop.stand_still(False)


@row("VirtualLoop")
async def another_loop(here: Here) -> None:
    loop = VirtualLoop()
    loop.close()
    await second_bus(here)


@row("VirtualLoop.stop")
async def stop(here: Here) -> None:
    await here.bus.publish(here.order())
    if isinstance(loop := asyncio.get_running_loop(), VirtualLoop):
        loop.stop()


@row("VirtualLoop.set_wall_time")
async def set_wall_time(here: Here) -> None:
    if isinstance(loop := asyncio.get_running_loop(), VirtualLoop):
        now = loop.wall_time()
        loop.set_wall_time(now + 3600)
        await here.bus.publish(here.order())
        loop.set_wall_time(now)


@row("Journal.export")
async def export(here: Here) -> None:
    with Journal(here.plan.recording) as journal:
        journal.export(f"{here.plan.folder}/{clock.token()}.jsonl")


# The loop.


@row("VirtualLoop.create_connection", reaches="http")
async def create_connection(here: Here) -> None:
    loop = asyncio.get_running_loop()
    way_out, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", here.plan.http)
    way_out.write(b"order")  # type: ignore[attr-defined]
    await asyncio.sleep(0.1)
    way_out.close()


@row("VirtualLoop.create_datagram_endpoint", reaches="udp")
async def create_datagram_endpoint(here: Here) -> None:
    loop, there = asyncio.get_running_loop(), ("127.0.0.1", here.plan.udp)
    way_out, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=there)
    way_out.sendto(b"order")
    await asyncio.sleep(0.1)
    way_out.close()


@row("VirtualLoop.sock_sendall", reaches="http")
async def sock_sendall(here: Here) -> None:
    here.line.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(here.line, b"order")


@row("VirtualLoop.run_in_executor", reaches="http")
async def run_in_executor(here: Here) -> None:
    await asyncio.get_running_loop().run_in_executor(None, fetch, here.plan.site)


@row("VirtualLoop.subprocess_exec", reaches="http")
async def subprocess_exec(here: Here) -> None:
    process = await asyncio.create_subprocess_exec(*command(here))
    await process.wait()


@row("VirtualLoop.subprocess_shell", reaches="http")
async def subprocess_shell(here: Here) -> None:
    program, flag, code = command(here)
    process = await asyncio.create_subprocess_shell(f'"{program}" {flag} "{code}"')
    await process.wait()


@row("VirtualLoop.call_soon_threadsafe", reaches="gateway")
async def call_soon_threadsafe(here: Here) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon_threadsafe(here.bus.publish_nowait, here.order())
    await asyncio.sleep(0.1)


# Beside the package.


def fetch(site: str) -> None:
    urllib.request.urlopen(site, b"order", timeout=5).read()


def command(here: Here) -> tuple[str, str, str]:
    code = f"import urllib.request as u; u.urlopen('{here.plan.site}', b'order').read()"
    return sys.executable, "-c", code


@way("urllib", reaches="http")
async def by_urllib(here: Here) -> None:
    fetch(here.plan.site)


@way("urllib whose error is caught", reaches="http")
async def by_urllib_caught(here: Here) -> None:
    with contextlib.suppress(Exception):
        fetch(here.plan.site)


@way("a raw socket", reaches="http")
async def by_socket(here: Here) -> None:
    with socket.socket() as made:
        made.connect(("127.0.0.1", here.plan.http))
        made.sendall(b"order")


@way("a raw datagram", reaches="udp")
async def by_datagram(here: Here) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"order", ("127.0.0.1", here.plan.udp))


@way("a connection that was there before", reaches="http")
async def by_connection_before(here: Here) -> None:
    here.line.setblocking(True)
    here.line.sendall(b"order")


@way("asyncio.open_connection", reaches="http")
async def by_asyncio(here: Here) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", here.plan.http)
    writer.write(b"order")
    await writer.drain()
    writer.close()


@way("a loop of uvloop", reaches="")
async def by_uvloop(here: Here) -> None:
    import uvloop

    loop = uvloop.new_event_loop()
    with contextlib.closing(loop), contextlib.suppress(RuntimeError):
        loop.run_until_complete(by_asyncio(here))


@way("zmq", reaches="zmq")
async def by_zmq(here: Here) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(here.plan.pull)
        push.send(b"order")


@way("a zmq socket that was there before", reaches="zmq")
async def by_zmq_before(here: Here) -> None:
    here.push.send(b"order")


@way("a FIFO that is opened", reaches="fifo")
async def by_fifo(here: Here) -> None:
    with open(here.plan.fifo, "w") as opened:  # noqa: ASYNC230
        opened.write("order\n")


@way("a FIFO whose error is caught", reaches="fifo")
async def by_fifo_caught(here: Here) -> None:
    with contextlib.suppress(Exception):
        Path(here.plan.fifo).write_text("order\n")  # noqa: ASYNC240


@way("a FIFO by os.open", reaches="fifo")
async def by_fifo_of_os(here: Here) -> None:
    descriptor = os.open(here.plan.fifo, os.O_WRONLY)
    os.write(descriptor, b"order\n")
    os.close(descriptor)


@way("a log in a FIFO", reaches="fifo")
async def by_logging(here: Here) -> None:
    handler = logging.FileHandler(here.plan.fifo)
    handler.handle(logging.makeLogRecord({"msg": "order"}))
    handler.close()


@way("a device", reaches="device")
async def by_device(here: Here) -> None:
    descriptor = os.open(here.plan.device, os.O_WRONLY | os.O_NOCTTY)
    os.write(descriptor, b"order\n")
    os.close(descriptor)


@way("subprocess", reaches="http")
async def by_subprocess(here: Here) -> None:
    subprocess.run(command(here), check=True)  # noqa: ASYNC221


@way("os.system", reaches="http")
async def by_system(here: Here) -> None:
    program, flag, code = command(here)
    os.system(f'"{program}" {flag} "{code}"')  # noqa: ASYNC221


@way("fork", reaches="http")
async def by_fork(here: Here) -> None:
    if (child := os.fork()) == 0:
        try:
            fetch(here.plan.site)
        finally:
            os._exit(0)
    os.waitpid(child, 0)  # noqa: ASYNC222


@way("multiprocessing", reaches="http")
async def by_multiprocessing(here: Here) -> None:
    process = multiprocessing.get_context("fork").Process(target=fetch, args=(here.plan.site,))
    process.start()
    process.join()


@way("a process pool", reaches="http")
async def by_process_pool(here: Here) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        pool.submit(fetch, here.plan.site).result()


@way("a thread", reaches="http")
async def by_thread(here: Here) -> None:
    thread = threading.Thread(target=fetch, args=(here.plan.site,))
    thread.start()
    thread.join()


@way("a thread pool", reaches="http")
async def by_thread_pool(here: Here) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(fetch, here.plan.site).result()


@way("asyncio.to_thread", reaches="http")
async def by_to_thread(here: Here) -> None:
    await asyncio.to_thread(fetch, here.plan.site)


@way("a timer of the loop", reaches="http")
async def by_timer(here: Here) -> None:
    asyncio.get_running_loop().call_later(0.01, fetch, here.plan.site)
    await asyncio.sleep(0.1)


@way("a task", reaches="http")
async def by_task(here: Here) -> None:
    await asyncio.gather(asyncio.create_task(by_urllib(here)), return_exceptions=True)


# Callables that open nothing. What is new and opens nothing is added to its line here.

plainly("", " ".join(aiobus.errors.__all__))
plainly("", "Keyring")
plainly("Keyring", "load reload secret_of")
plainly(
    "",
    """
    BusStats Peer SubscriptionStats Progress WhatIfReport Difference Report Event
    EventType EventStream Limits Recording Subscription Topic Journal Explanation Hops explain
    explain_hops
    """,
)
plainly(
    "Explanation",
    """
    to_dict
    """,
)
plainly(
    "Hops",
    """
    to_dict
    """,
)
plainly(
    "testing",
    """
    Faults Message MemoryNetwork
    """,
)
plainly(
    "Peer",
    """
    covers of subscribes told
    """,
)
plainly(
    "Recording",
    """
    flush
    """,
)
plainly(
    "clock",
    """
    elapsed fresh heard is_virtual machine newest read_by stopwatch time token
    """,
)
plainly(
    "AsyncEventBus",
    """
    on settle stats stream subscribe unsubscribe wait_closed wait_for wait_for_peer
    """,
)
plainly(
    "Journal",
    """
    ask close columns each facts judging last_of_keys last_offset may_have number page read
    seq_before_last sources verify
    """,
)
plainly(
    "Replay",
    """
    ask close doubt flush held link listeners mark play resume seek
    shown standings start step subscribe unsubscribe until_peer why_deaf
    """,
)
plainly(
    "Subscription",
    """
    admit begin close confirm convert deliver delivery_of end_delivery fail feed finish keep
    keep_some lose miss note_idle pop reach recheck refuse release start_lagging take take_back
    unhanded unsubscribe wait
    """,
)
plainly(
    "VirtualLoop",
    """
    add_reader add_signal_handler add_writer block call_at call_exception_handler call_later
    call_soon close connect_accepted_socket connect_read_pipe connect_write_pipe
    create_future create_server create_task create_unix_connection create_unix_server
    default_exception_handler fresh_epoch get_debug get_exception_handler get_task_factory
    getaddrinfo getnameinfo is_closed is_running plain_task remove_reader remove_signal_handler
    remove_writer run_at run_forever run_until_complete select sendfile set_debug
    set_default_executor set_exception_handler set_task_factory
    shutdown_asyncgens shutdown_default_executor sock_accept sock_connect sock_recv
    sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendfile sock_sendto start_tls time
    until_moving wall_time
    """,
)
plainly(
    "testing.MemoryNetwork",
    """
    heal is_blocked is_split kill partition port rng settle
    """,
)


# The processes.


def sockets() -> set[str]:
    """The sockets of this process, by inode."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                found.add(target)
    return found


def say(line: str) -> None:
    """Tell the test."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def replayed(here: Here, attempt: Attempt, speed: float | None) -> tuple[str, bool]:
    """How an attempt ends in a replay, and whether it had a socket more than before."""
    before = sockets()
    has_opened: list[bool] = []

    async def main() -> None:
        here.replay = Replay(here.plan.recording)
        async with AsyncEventBus(here.replay, name="strategy", on_error="raise") as here.bus:

            async def on_trade(trade: Event) -> None:
                here.event = trade
                try:
                    await attempt(here)
                finally:
                    has_opened.append(bool(sockets() - before))

            await here.bus.subscribe("TRADE", on_trade)
            await here.replay.play(speed)
            await here.bus.settle()

    try:
        run_virtual(main)
    except BaseException as error:  # noqa: BLE001 - the judge is what arrived
        return type(error).__name__, any(has_opened)
    assert has_opened, "no trade came"
    return "ran", any(has_opened)


async def live(here: Here, attempt: Attempt) -> None:
    """The same with a bus on the desk of the gateway."""
    async with AsyncEventBus(here.plan.ipc, name="strategy") as here.bus:
        assert "gateway" in [each.name for each in here.bus.peers]
        with Journal(here.plan.recording) as journal:
            here.event = next(event for _, event in journal.read(types="TRADE"))
        await attempt(here)


def attack(plan: Plan, mode: str, names: list[str]) -> None:
    """Make attempts, and print a line for each."""
    if not Path(plan.recording).exists():
        make(Path(plan.recording), [*entries(10), *entries_of_others()])
        asyncio.run(taped(plan.taped))
    for name in names:
        here = Here(plan)
        attempt = {**ROWS, **WAYS}[name]
        if mode == "live":
            asyncio.run(live(here, attempt))
            outcome, has_opened = "ran", False
        else:
            outcome, has_opened = replayed(here, attempt, 100.0 if mode == "paced" else None)
        here.line.close()
        here.push.close(linger=1000)
        say(json.dumps([name, outcome, has_opened]))
    if Path(plan.journal).exists():
        asyncio.run(resume(plan))


def entries_of_others() -> list[Any]:
    """What `what_if` asks for."""
    return [entry(1, source="strategy", type="ORDER"), entry(1, source="gateway", type="FILL")]


async def gateway(ipc: str, tcp: str, ledger: str) -> None:
    """Execute every order that comes, and every one that is still in any history."""
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    async with (
        AsyncEventBus(ipc, name="gateway") as one,
        AsyncEventBus(tcp, name="gateway") as other,
    ):
        for bus in (one, other):

            async def execute(order: Event, bus: AsyncEventBus = bus) -> None:
                os.write(file, f"{order.id}\n".encode())
                await bus.publish(Event("ACK", {}))

            await bus.subscribe("ORDER", execute, since=0, max_age=math.inf)
        say("live")
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Be one of the processes."""
    role, *given = sys.argv[1:]
    if role == "gateway":
        ipc, tcp, ledger = given
        asyncio.run(gateway(ipc, tcp, ledger))
    else:
        plan, mode, names = json.loads(given[0])
        attack(Plan(*plan), mode, names)


if __name__ == "__main__":
    importlib.import_module("aiobus.mesh.sockets")
    main()

"""One system at work: its server, its publishers and its subscribers, each a process of its own.

Owns their starting, their end and the conversation with them. Must not know what is compared: it is
told how many there are and which events, and answers with figures.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from perf.systems import Setup, System
from perf.tally import Tally
from perf.vitals import cpu_seconds, rss

__all__ = ["Desk", "DeskFailed", "Layout"]

START_SECONDS = 30.0
ANSWER_SECONDS = 120.0
END_SECONDS = 10.0
SETTLE_SECONDS = 0.2
"""After the last publish of a schedule, for what is under way."""
WINDOW = 10_000
SHOWN = 300
"""Of what a failed process said, so many characters."""

Answer = dict[str, Any]


class DeskFailed(Exception):
    """A process or a server of a system ended or did not answer; what it said is in the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The processes of a desk, and the events that they publish."""

    publishers: int = 1
    subscribers: int = 1
    is_shared: bool = False
    """True when one process is the publisher and the subscriber."""
    types: tuple[str, ...] = ("TRADE",)
    keys: tuple[str, ...] = ("SYM0000",)
    only: tuple[str, ...] | None = None
    """The keys that are subscribed to; None for all."""
    unmatched: int = 0
    """Subscriptions beside it that match nothing."""
    is_matched: bool = True
    """False when there is no subscription but those."""
    size: int = 0
    """Characters of padding in each event."""
    shape: str = ""
    """What each event is in place of a trade: a name in `perf.books.NESTED`."""
    callback: str = "count"
    """`count`, `time`, `by publisher` or `when all wait`: the last handles nothing before a whole
    window is published.
    """
    window: int = WINDOW
    """Events under way at most, of all publishers together."""


class Process:
    """One worker. Its stderr is kept for the case that it fails."""

    def __init__(
        self, process: asyncio.subprocess.Process, part: str, index: int, name: str, errors: Path
    ) -> None:
        self.part = part
        self.index = index
        self._process = process
        self._name = name
        self._errors = errors

    def __str__(self) -> str:
        return self._name

    async def hear(self, seconds: float) -> Answer:
        """The next answer."""
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), seconds)
        except TimeoutError:
            raise DeskFailed(f"{self._name} did not answer within {seconds:g} s") from None
        if not line:
            said = self._errors.read_text().strip().splitlines() or ["nothing"]
            raise DeskFailed(f"{self._name} ended, saying {said[-1][:SHOWN]}")
        answer: Answer = json.loads(line)
        return answer

    async def do(self, command: str, **more: Any) -> Answer:
        """Tell it to do something, and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **more}).encode() + b"\n")
        return await self.hear(ANSWER_SECONDS)

    async def end(self) -> None:
        """Let it end by itself; kill it when it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await _wait(self._process)


class Desk:
    """Made by `open`."""

    def __init__(self, system: System, layout: Layout, setup: Setup) -> None:
        self.system = system
        self.layout = layout
        self._setup = setup
        self._server = 0
        self._processes: list[Process] = []
        self.publishers: list[Process] = []
        self.subscribers: list[Process] = []

    @staticmethod
    @contextlib.asynccontextmanager
    async def open(
        system: System, layout: Layout, folder: Path | None = None
    ) -> AsyncIterator["Desk"]:
        """All connected, every subscription live. `folder`: run the code that is there."""
        folder = folder or system.folder()
        with tempfile.TemporaryDirectory(prefix="ab", ignore_cleanup_errors=True) as shared:
            ports = _free_ports(max(1, layout.publishers))
            setup = Setup(shared, ports, system.transport, layout.publishers)
            Tally.create(Path(shared) / "tally")
            desk = Desk(system, layout, setup)
            async with contextlib.AsyncExitStack() as stack:
                await desk._start_server(stack)
                await desk._start_workers(stack, folder)
                yield desk

    async def _start_server(self, stack: contextlib.AsyncExitStack) -> None:
        command = self.system.offer().server(self._setup)
        if command is None:
            return
        server = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.push_async_callback(_terminate, server)
        self._server = server.pid
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await _accepts(self._setup.ports[0]):
                    if server.returncode is not None:
                        raise DeskFailed(f"{command[0]} ended with {server.returncode}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise DeskFailed(f"{command[0]} accepts no connection") from None

    async def _start_workers(self, stack: contextlib.AsyncExitStack, folder: Path | None) -> None:
        layout = self.layout
        parts = [("publish+subscribe", 0)] if layout.is_shared else []
        if not layout.is_shared:
            parts += [("publish", index) for index in range(layout.publishers)]
            parts += [("subscribe", index) for index in range(layout.subscribers)]
        stack.push_async_callback(self._end_workers)
        starts = [self._start(part, index, folder) for part, index in parts]
        for failure in await asyncio.gather(*starts, return_exceptions=True):
            if failure is not None:  # now that all are known, and can be ended
                raise failure
        for process in self._processes:
            if "publish" in process.part:
                self.publishers.append(process)
            if "subscribe" in process.part:
                self.subscribers.append(process)
        if layout.is_matched and self.system.delivers:
            for index, publisher in enumerate(self.publishers):
                places = [index] if layout.callback == "by publisher" else self._places
                key = self._keys_of(index)[0] if layout.only is None else layout.only[index]
                await publisher.do("probe", places=places, key=key)

    async def _end_workers(self) -> None:
        await asyncio.gather(*(process.end() for process in self._processes))

    async def _start(self, part: str, index: int, folder: Path | None) -> None:
        layout, name = self.layout, f"{part.partition('+')[0]}-{index}"
        setup = replace(self._setup, name=name, index=index)
        told = {
            "system": self.system.name,
            "part": part,
            "setup": asdict(setup),
            "types": layout.types,
            "keys": self._keys_of(index) if "publish" in part else layout.keys,
            "only": layout.only,
            "unmatched": layout.unmatched,
            "matched": layout.is_matched,
            "size": layout.size,
            "shape": layout.shape,
            "callback": layout.callback,
            "window": layout.window,
        }
        errors = Path(self._setup.folder) / f"{name}.err"
        with errors.open("wb") as file:
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "perf.worker", json.dumps(told)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=folder,
                limit=2**20,
            )
        process = Process(worker, part, index, f"{self.system.name}, {name},", errors)
        self._processes.append(process)
        self._processes.sort(key=lambda process: process.index)
        found = (await process.hear(START_SECONDS))["package"]
        if folder is not None and not _is_in(folder, found):
            raise DeskFailed(f"{process} measures {found}, which is not in {folder}")

    def _keys_of(self, publisher: int) -> tuple[str, ...]:
        """With `by publisher`, each publisher has a key of its own, which tells it."""
        if self.layout.callback == "by publisher":
            return (self.layout.keys[publisher],)
        return self.layout.keys

    @property
    def _places(self) -> list[int]:
        return list(range(self.layout.subscribers)) if self.layout.is_matched else []

    async def throughput(
        self, seconds: float, count: int | None = None, share: int = 1
    ) -> dict[str, float]:
        """Every publisher at full rate."""
        server = cpu_seconds(self._server) if self._server else 0.0
        before = [await each.do("mark") for each in self.subscribers]
        told = {"seconds": seconds, "count": count, "share": share}
        window = self.layout.window // len(self.publishers)
        flows = await asyncio.gather(
            *(
                publisher.do(
                    "throughput",
                    places=[index] if self.layout.callback == "by publisher" else self._places,
                    window=window,
                    **told,
                )
                for index, publisher in enumerate(self.publishers)
            )
        )
        after = [await each.do("tell") for each in self.subscribers]
        handled = max(1, sum(flow["handled"] for flow in flows))
        heard = handled * max(1, len(self.subscribers)) / share
        return {
            "rate": handled / max(flow["seconds"] for flow in flows),
            "handled": handled,
            "lost": sum(max(0, flow["sent"] - flow["handled"]) for flow in flows),
            "publisher_us": 1e6 * sum(flow["cpu"] for flow in flows) / handled,
            "subscriber_us": 1e6 * sum(each["cpu"] for each in after) / heard,
            "server_us": 1e6 * (cpu_seconds(self._server) - server) / handled
            if self._server
            else 0.0,
            "subscriber_cpu": sum(each["cpu"] for each in after),
            "received": sum(each["received"] for each in after),
            "publisher_rss": max(flow["rss"] for flow in flows),
            "subscriber_rss": max(each["rss"] for each in after) if after else 0.0,
            "server_rss": rss(self._server) if self._server else 0.0,
            "subscriber_growth": max(
                (each["rss"] - was["rss"] for each, was in zip(after, before, strict=True)),
                default=0.0,
            ),
        }

    async def latency(self, rate: float, seconds: float) -> dict[str, Any]:
        """The first publisher at a steady rate, as the first subscriber sees it."""
        server = cpu_seconds(self._server) if self._server else 0.0
        await self.subscribers[0].do("mark")
        paced = await self.publishers[0].do("latency", rate=rate, seconds=seconds)
        await asyncio.sleep(SETTLE_SECONDS)
        seen = await self.subscribers[0].do("tell")
        quantiles = dict(map(tuple, seen["quantiles"]))
        return {
            **{f"p{share:g}": 1e6 * quantiles.get(share, 0.0) for share in (50, 90, 99, 99.9)},
            "max": 1e6 * quantiles.get(100, 0.0),
            "lost": paced["sent"] - seen["timed"],
            "late": paced["late"],
            "publisher_us": 1e6 * paced["cpu"] / paced["sent"],
            "subscriber_us": 1e6 * seen["cpu"] / paced["sent"],
            "server_us": 1e6 * (cpu_seconds(self._server) - server) / paced["sent"]
            if self._server
            else 0.0,
            "quantiles": [[share, 1e6 * delay] for share, delay in seen["quantiles"]],
        }

    async def codec(self, seconds: float) -> dict[str, float]:
        """Both halves of the codec at once: the rate of the slower, and what each costs."""
        told = {"places": [], "window": WINDOW, "seconds": seconds}
        encoded, decoded = await asyncio.gather(
            self.publishers[0].do("throughput", **told),
            self.subscribers[0].do("hand over", seconds=seconds),
        )
        return {
            "rate": min(each["handled"] / each["seconds"] for each in (encoded, decoded)),
            "lost": 0,
            "publisher_us": 1e6 * encoded["cpu"] / encoded["handled"],
            "subscriber_us": 1e6 * decoded["cpu"] / decoded["handled"],
        }


def _is_in(folder: Path, package: str) -> bool:
    return Path(package) == folder.resolve() / "aiobus"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _terminate(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, 15)
    await _wait(process)


async def _wait(process: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), END_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()

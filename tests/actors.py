"""Real processes that tests tell what to do: each has a loop of its own and runs what it is sent.

A nursery process has imported everything and forks an actor for each that is asked for, which takes
milliseconds. It runs no loop and no bus itself, so nothing is inherited that could matter. Whatever
an actor is told, it answers: tests await answers, never time.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import textwrap
import traceback
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

ABORTED = -signal.SIGABRT


_ports = count(7000)


def own_host() -> str:
    """An address that no other process has: all of 127.0.0.0/8 is this machine."""
    pid = os.getpid()
    return f"127.{1 + pid // 65536 % 250}.{pid // 256 % 256}.{pid % 256}"


def tcp_url() -> str:
    """An address that no other test has: a port that was free a moment ago another may have by
    now.
    """
    return f"tcp://{own_host()}:{next(_ports)}"


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this machine that is free, and is given to no process that asks for any: it is
    below those. Another test process begins elsewhere.
    """
    while True:
        with contextlib.suppress(OSError), socket.create_server((host, port := next(_low_ports))):
            return port


_low_ports = count(10_000 + os.getpid() * 61 % 20_000)


class ActorError(Exception):
    """What an actor was told raised: `kind` is the name of the exception."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Actor:
    """A process. `await actor("return 1 + 1")` runs the body of a coroutine function in it, with
    `aiobus`, `asyncio`, `bus` (once there is one) and what earlier code left in `self`.
    """

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.is_expected_to_die = False
        self._channel = channel
        self._number = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def listen(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=self._channel, limit=2**24)
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                number, value, error = json.loads(line)
                answer = self._answers.pop(number)
                if answer.done():
                    continue
                if error is None:
                    answer.set_result(value)
                else:
                    answer.set_exception(ActorError(*error))
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ActorError("ProcessEnded", f"{self.pid} has ended"))

    async def __call__(self, code: str, **values: Any) -> Any:
        return await self.tell(code, **values)

    def tell(self, code: str, **values: Any) -> "asyncio.Future[Any]":
        """The same, without waiting: the answer can be awaited later."""
        self._number += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[self._number] = answer
        self._writer.write(json.dumps([self._number, code, values]).encode() + b"\n")
        return answer

    async def start(self, url: str, name: str, **keywords: Any) -> None:
        """Start a bus; what it receives by `hear` goes into `self.heard`."""
        await self(START, url=url, name=name, keywords=keywords)

    async def hear(self, *types: str, **keywords: Any) -> None:
        """Subscribe, and keep what comes."""
        await self(HEAR, types=types, keywords=keywords)

    async def heard(self, count: int) -> list[Any]:
        """The data of everything heard, once there are `count` of them."""
        return list(await self(HEARD, count=count))

    def kill(self, what: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to this process."""
        self.is_expected_to_die |= what == signal.SIGKILL
        os.kill(self.pid, what)

    async def end(self) -> None:
        """Let it close its bus and exit, however it was left; check how it ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        self._writer.close()
        code = await asyncio.wait_for(self.code, 20)
        await self._task
        assert code == (-signal.SIGKILL if self.is_expected_to_die else 0), f"exit code {code}"


START = """
self.heard, self.came = [], asyncio.Condition()
self.bus = aiobus.AsyncEventBus(url, name=name, **keywords)
await self.bus.start()
"""
HEAR = """
async def on_event(event):
    self.heard.append(event.data)
    async with self.came:
        self.came.notify_all()
self.subscription = await self.bus.subscribe(types, on_event, **keywords)
"""
HEARD = """
async with self.came:
    await self.came.wait_for(lambda: len(self.heard) >= count)
return self.heard
"""


class Nursery:
    """Makes actors."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._actors: dict[int, Actor] = {}
        self._pids: asyncio.Queue[int] = asyncio.Queue()
        self._making = asyncio.Lock()

    async def listen(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=self._control.dup())
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        early: dict[int, int] = {}
        while line := await self._reader.readline():
            pid, code = json.loads(line)
            if code is None:
                self._pids.put_nowait(pid)
            elif pid in self._actors:
                self._actors[pid].code.set_result(code)
            else:
                early[pid] = code

    async def actor(self, kind: str | None = None) -> Actor:
        """A new process, whose loop is "asyncio" or "uvloop", by default as the caller's."""
        kind = kind or type(asyncio.get_running_loop()).__module__.partition(".")[0]
        ours, theirs = socket.socketpair()
        async with self._making:
            with theirs:
                socket.send_fds(self._control, [kind.encode()], [theirs.fileno()])
            pid = await self._pids.get()
            actor = self._actors[pid] = Actor(pid, ours)
        await actor.listen()
        return actor

    async def actors(self, count: int) -> list[Actor]:
        """Several of them."""
        return [await self.actor() for _ in range(count)]

    async def end(self) -> None:
        """End all actors, and check how each ended."""
        await asyncio.gather(*(actor.end() for actor in self._actors.values()))
        self._writer.close()
        self._control.close()
        await self._task


@contextlib.asynccontextmanager
async def nursery() -> AsyncIterator[Nursery]:
    """A nursery for one test; in the end every actor has ended, as it should."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__)), str(theirs.fileno()), pass_fds=[theirs.fileno()]
        )
    made = Nursery(ours)
    await made.listen()
    try:
        yield made
    finally:
        try:
            await made.end()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


# In the nursery process and in the actors.


def tend(control: socket.socket) -> None:
    """Fork an actor for each channel that is sent; say how each ends."""

    def reap(*_: object) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            say(pid, os.waitstatus_to_exitcode(status))

    def say(pid: int, code: int | None) -> None:
        with contextlib.suppress(OSError):  # the test is over
            control.sendall(json.dumps([pid, code]).encode() + b"\n")

    signal.signal(signal.SIGCHLD, reap)
    while True:
        kind, descriptors, _, _ = socket.recv_fds(control, 64, 1)
        if not descriptors:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            control.close()
            act(socket.socket(fileno=descriptors[0]), kind.decode())
        os.close(descriptors[0])
        say(pid, None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def act(channel: socket.socket, kind: str) -> None:
    """Be an actor, and never return."""
    import uvloop

    code = 1
    try:
        factory = uvloop.new_event_loop if kind == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(Play(channel).run())
        code = 0
    except BaseException:  # noqa: BLE001 - its last words; the exit code tells the test
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Play:
    """What an actor knows: `self` of the code that it is told."""

    bus: Any = None

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._channel, limit=2**24)
        while line := await reader.readline():
            task = asyncio.create_task(self._perform(*json.loads(line)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.bus is not None:
            await self.bus.close(2)
        self._writer.close()

    async def _perform(self, number: int, code: str, values: dict[str, Any]) -> None:
        import aiobus

        names = {**vars(aiobus), "aiobus": aiobus, "asyncio": asyncio, "os": os, **values}
        body = f"async def told(self, bus):\n{textwrap.indent(textwrap.dedent(code), '    ')}"
        try:
            exec(body, names)
            answer = [number, await names["told"](self, self.bus), None]
        except Exception as error:  # noqa: BLE001 - it is the test's to judge
            answer = [number, None, [type(error).__name__, str(error)]]
        self._writer.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    import logging

    from aiobus.limits import Limits
    from aiobus.url import adapter

    for url in ("ipc://x", "tcp://127.0.0.1:7555"):
        adapter(url, Limits())  # imports what actors need, before they are forked
    logging.basicConfig(level=os.environ.get("ACTORS_LOG", "CRITICAL"))
    tend(socket.socket(fileno=int(sys.argv[1])))

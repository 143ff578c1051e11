"""One round of a scenario: its processes, its dice, its ledgers and what came of it.

Owns the processes and the faults done to them. Must not know what is right: the oracle judges the
ledgers, and a round that ends is a round without a hang.
"""

import asyncio
import random
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors import Actor, Nursery, tcp_url

from aiobus.keyring.changes import make_key
from aiobus.keyring.members import EVERYTHING
from aiobus.testing import MemoryNetwork
from faults.bots import GUEST, Bot
from faults.ledger import read
from faults.oracle import Verdict, judge

__all__ = ["LOOPS", "Desk", "Process", "Scale", "desk"]

RECOVERY_SECONDS = 3.0
"""The promise: so long after a fault has ended, all have what there is to have."""

LOOPS = ("asyncio", "uvloop")

START = """
from faults.bots import GUEST, Bot
if keys:
    os.environ["AIOBUS_KEYRING"] = keys
self.bot = Bot(path)
self.bus = await self.bot.start(url, name, limits=Limits(**limits))
"""
DO = """
result = getattr(self.bot, method)(*arguments, **keywords)
return await result if asyncio.iscoroutine(result) else result
"""
RUN = """
import importlib
return await getattr(importlib.import_module(module), function)(self.bot, *arguments)
"""


@dataclass(frozen=True)
class Scale:
    """How much a round takes upon itself: what `make test` can afford, up to what the issue asks
    for.
    """

    seconds: float = 0.0
    """What there is for one round."""
    is_timed: bool = False
    """Whether a recovery that takes too long is an error. It is one in a soak, which has the
    machine for itself. `make test` may share it, and proves what arrives, not how soon.
    """

    def length(self, short: float, full: float) -> float:
        """Seconds between the two that a fault is to last."""
        return min(full, max(short, self.seconds))

    def affords(self, seconds: float) -> bool:
        """True where a round may take that long."""
        return self.seconds >= seconds


class Process:
    """A bot in a process of its own."""

    def __init__(self, actor: Actor, name: str) -> None:
        self.actor = actor
        self.name = name
        self.is_killed = False

    async def do(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Call a method of its `Bot`; awaits it there if it is a coroutine function."""
        return await self.actor(DO, method=method, arguments=arguments, keywords=keywords)

    def run(self, module: str, function: str, *arguments: Any) -> "asyncio.Future[Any]":
        """Call a coroutine function of a module with its `Bot`, there."""
        return self.actor.tell(RUN, module=module, function=function, arguments=arguments)

    async def freeze(self) -> None:
        """Stop it where it is; returns once it has stopped."""
        self.actor.kill(signal.SIGSTOP)
        while not self._is_stopped():  # noqa: ASYNC110 - only /proc tells
            await asyncio.sleep(0)

    def _is_stopped(self) -> bool:
        status = Path(f"/proc/{self.actor.pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] == "T"

    def thaw(self) -> float:
        """Let it go on; returns when."""
        self.actor.kill(signal.SIGCONT)
        return time.monotonic()

    async def kill(self) -> None:
        """End it without a word; returns once it is dead."""
        self.is_killed = True
        self.actor.kill()
        await self.actor.code

    def abandon(self) -> None:
        """It is of no use any more."""
        if not self.actor.code.done():
            self.actor.kill()

    async def end(self) -> None:
        """Its bus is closed or dead: see how it ends. Raises AssertionError if it does not well."""
        await self.actor.end()


class Local:
    """A bot in this process, on a network in memory."""

    is_killed = False

    def __init__(self, bot: Bot, name: str) -> None:
        self.bot = bot
        self.name = name

    async def do(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Call a method of the `Bot`; what it published has left when this returns."""
        result = getattr(self.bot, method)(*arguments, **keywords)
        if asyncio.iscoroutine(result):
            result = await result
        await asyncio.sleep(0)  # the end of the tick in which it was published
        return result

    def abandon(self) -> None:
        """Nothing waits for it."""
        self._closing = asyncio.ensure_future(self.bot.bus.close(0))

    async def end(self) -> None:
        """It has closed."""


class Desk:
    """The bots of one round. `dice` decides what the scenario leaves to chance."""

    def __init__(
        self,
        nursery: Nursery,
        url: str,
        folder: Path,
        dice: random.Random,
        scale: Scale,
        keys: str = "",
    ) -> None:
        self.nursery = nursery
        self.url = url
        self.keys = keys
        """The directory of the keyring; "" without keys."""
        self.folder = folder
        self.dice = dice
        self.scale = scale
        self.aborted: set[str] = set()
        """Processes that a signal ended, other than by `kill`: they may have said no bye."""
        self.recoveries: list[float] = []
        """Seconds from the end of a fault until all was there: 3 at most are promised."""
        self.size = ""
        """Where a round may be smaller than the issue asks for: how large it was."""
        self.at_end = ExitStack()
        """What is to be closed once all have left."""
        self._processes: list[Process | Local] = []
        self._gone: list[Process] = []

    async def bot(self, name: str, **limits: int) -> Process:
        """A process with a bus of that name, started."""
        actor = await self.nursery.actor(self.dice.choice(LOOPS))
        return await self.hire(actor, name, self.url, **limits)

    async def hire(self, actor: Actor, name: str, url: str, **limits: int) -> Process:
        """The same in a process that is there already, perhaps elsewhere."""
        path = self._path(name)
        process = Process(actor, name)
        self._processes.append(process)
        self.admit(name)
        await actor(START, path=str(path), url=url, name=name, limits=limits, keys=self.keys)
        return process

    def admit(self, name: str) -> None:
        """Make a key of this name, on a desk with keys that has none yet."""
        if self.keys and not Path(self.keys, f"{name}.secret").exists():
            make_key(self.keys, name, EVERYTHING)

    async def local(self, network: MemoryNetwork, name: str) -> Local:
        """The same in this process, on a network in memory."""
        bot = Bot(str(self._path(name)))
        await bot.open(network.bus(name))
        made = Local(bot, name)
        self._processes.append(made)
        return made

    def _path(self, name: str) -> Path:
        return self.folder / f"{len(self._processes) + len(self._gone):03}-{name}.jsonl"

    async def bots(self, *names: str) -> list[Process]:
        """Several of them, one after another."""
        return [await self.bot(name) for name in names]

    async def last(self, short: float, full: float) -> None:
        """Let a fault last: `short` seconds in `make test`, `full` as the issue asks for."""
        seconds = self.scale.length(short, full)
        self.size = f"{seconds:.3g} s"
        await asyncio.sleep(seconds)

    async def chance(self, most: float) -> float:
        """Let up to so many seconds pass: a random instant."""
        seconds = self.dice.random() * most
        await asyncio.sleep(seconds)
        return seconds

    async def recovered(
        self,
        healed: float,
        publishers: Collection[Process | Local],
        subscribers: Collection[Process | Local],
        label: str = "all",
    ) -> None:
        """The fault ended at `healed`: wait until each of `subscribers` has what was published
        until now, and note how long that took.

        The load rests meanwhile: what is promised is that the bus recovers, not that two cores can
        carry this test's load and its recovery at once.
        """
        places = [await each.do("pause") for each in publishers]
        waits = [each.do("until", *place, label=label) for each in subscribers for place in places]
        seconds = max(await asyncio.gather(*waits)) - healed
        self.recoveries.append(seconds)

    async def leave(self, process: Process) -> None:
        """One leaves before the others, by its own will."""
        await process.do("flush")
        await process.do("close")
        await process.end()
        self._gone.append(process)
        self._processes.remove(process)

    def abandon(self) -> None:
        """The round has failed: its processes must not be in the way of the next."""
        for each in self._processes:
            each.abandon()

    async def finish(self) -> Verdict:
        """Let all flush, handle and leave; judge what they wrote down."""
        alive = [each for each in self._processes if not each.is_killed]
        missing = await asyncio.gather(*(each.do("flush") for each in alive))
        await asyncio.gather(*(each.do("complete") for each in alive))
        missing += await asyncio.gather(*(each.do("close") for each in alive))
        await asyncio.gather(*(each.end() for each in self._processes))
        paths = sorted(self.folder.glob("*.jsonl"))
        verdict = await asyncio.to_thread(judge, map(read, paths))
        # One that was killed is named until it counts as having left.
        dead = self.aborted | {each.name for each in self._processes if each.is_killed}
        for names in missing:
            if not dead.issuperset(each for each in names if not each.startswith(GUEST)):
                verdict.accuse("unconfirmed", f"{names} did not confirm, and only {dead} are dead")
        late = [seconds for seconds in self.recoveries if seconds > RECOVERY_SECONDS]
        for seconds in late if self.scale.is_timed else ():
            verdict.accuse("late recovery", f"{seconds:.2f} s after the fault had ended")
        return verdict


@asynccontextmanager
async def desk(
    nursery: Nursery, transport: str, dice: random.Random, scale: Scale
) -> AsyncIterator[Desk]:
    """A desk at an address of its own. Its ledgers are kept, and said where, if it fails."""
    folder = Path(tempfile.mkdtemp(prefix="aiobus-faults-"))
    meeting = folder / "d"
    meeting.mkdir(mode=0o700)
    url = f"ipc://{meeting}" if transport == "ipc" else tcp_url()
    keys = str(folder / "keys") if transport == "keys" else ""
    made = Desk(nursery, url, folder, dice, scale, keys)
    with made.at_end:
        try:
            yield made
        except BaseException:
            made.abandon()
            raise
    shutil.rmtree(folder)

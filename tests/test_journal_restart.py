"""A gateway with a journal that is killed and started again: what it confirmed is not lost, and
each of its neighbours hears that it was away.
"""

import os
import random
from pathlib import Path

import pytest
from actors import Nursery

from aiobus import Journal

pytestmark = pytest.mark.slow

FOLLOW = """
self.seen = []
async def note(event):
    self.seen.append([event.type, event.seq, event.data])
await bus.subscribe(["T", "END", "aiobus.gap", "aiobus.peer_restarted", "aiobus.peer_left"], note)
"""


PUBLISH = """
self.file = os.open(confirmed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
async def publisher(number):
    for count in range(1_000_000):
        await bus.publish(Event("T", [start, number, count]))
        os.write(self.file, b"%d %d %d\\n" % (start, number, count))
self.tasks = [asyncio.create_task(publisher(number)) for number in range(100)]
begin = bus.stats().published
while bus.stats().published < begin + events:
    await asyncio.sleep(0)
"""
UNTIL = """
while sum(each[0] == type for each in self.seen) < count:
    await asyncio.sleep(0.01)
return self.seen
"""
ROUNDS = int(os.environ.get("KILL_ROUNDS", "2"))


@pytest.mark.parametrize("is_long", [False, True], ids=["a moment", "so long that it has left"])
async def test_a_gateway_that_is_killed_has_lost_nothing_that_it_confirmed(
    nursery: Nursery, url: str, tmp_path: Path, is_long: bool
) -> None:
    path = tmp_path / "gateway.db"
    # What is confirmed goes into a file of its own, which the kernel keeps when a process dies.
    confirmed = tmp_path / "confirmed"
    rounds = 1 if is_long else ROUNDS
    strategy = await nursery.actor()
    await strategy.start(url, "strategy")
    await strategy(FOLLOW)
    for start in range(rounds):
        gateway = await nursery.actor()
        await gateway.start(url, "gateway", journal=str(path))
        events = random.randrange(200, 5_000)
        await gateway(PUBLISH, confirmed=str(confirmed), start=start, events=events)
        gateway.kill()
        await gateway.code
        if is_long:
            await strategy(UNTIL, type="aiobus.peer_left", count=1)
    gateway = await nursery.actor()
    await gateway.start(url, "gateway", journal=str(path))
    await gateway("await bus.publish(Event('END', None))")
    seen = await strategy(UNTIL, type="END", count=1)
    lines = {tuple(map(int, line.split())) for line in confirmed.read_text().splitlines()}
    with Journal(path) as journal:
        committed = [(event.seq, event.data) for _, event in journal.read()]
    in_file = [tuple(data) for _, data in committed if data is not None]
    assert lines <= set(in_file)
    assert len(set(in_file)) == len(in_file)
    assert [(seq, data) for type, seq, data in seen if type in ("T", "END")] == committed
    system = [type for type, *_ in seen if type.startswith("aiobus.")]
    assert system == [*["aiobus.peer_left"] * is_long, *["aiobus.peer_restarted"] * rounds]

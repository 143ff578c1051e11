"""Reading a socket: a turn of the loop at a time, whatever wakes the reader."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import zmq

from aiobus.mesh.sockets import SocketReader, SubscriberReader
from aiobus.sync import READER_MESSAGES

pytestmark = pytest.mark.usefixtures("no_task_is_left")

SENDERS, EACH = 8, 4_000


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    with zmq.Context() as made:
        yield made


async def test_a_socket_is_read_for_one_turn_in_each_iteration_of_the_loop(
    context: "zmq.Context[zmq.Socket[bytes]]",
) -> None:
    """Others send all the while, so the descriptor is readable again and again while a turn is
    scheduled already.
    """
    loop = asyncio.get_running_loop()
    socket = context.socket(zmq.PULL)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    heard = in_iteration = most = 0
    is_over = asyncio.Event()

    def hear(message: bytes, now: float, name: str) -> None:
        nonlocal heard, in_iteration
        heard += 1
        in_iteration += 1
        if heard == SENDERS * EACH:
            is_over.set()

    def begin_iteration() -> None:
        nonlocal in_iteration, most
        most, in_iteration = max(most, in_iteration), 0
        if not is_over.is_set():
            loop.call_soon(begin_iteration)

    def send() -> None:
        with context.socket(zmq.PUSH) as sender:
            sender.connect(f"tcp://127.0.0.1:{port}")
            for number in range(EACH):
                sender.send(b"%d" % number)

    reader = SocketReader(socket)
    senders = [threading.Thread(target=send) for _ in range(SENDERS)]
    try:
        reader.start(hear)
        begin_iteration()
        for each in senders:
            each.start()
        await is_over.wait()
        begin_iteration()
    finally:
        for each in senders:
            each.join()
        reader.close(0)
    assert heard == SENDERS * EACH
    assert most <= READER_MESSAGES


TOPICS = [b"T%05d\0" % number for number in range(3 * READER_MESSAGES)]
HELLO = b"~bot@1 tcp://127.0.0.1:2\0"


async def test_the_end_of_a_connection_is_read_whole_before_anything_is_said_of_its_bus(
    context: "zmq.Context[zmq.Socket[bytes]]",
) -> None:
    """Its topics are withdrawn before its hello. In between it seemed to listen and to ask for
    less: `flush` found nothing owed to it, and said that it has everything.
    """
    loop = asyncio.get_running_loop()
    asked: set[bytes] = set()
    changed = asyncio.Condition()

    def hear(message: bytes, link: int | None, name: str) -> None:
        (asked.add if message[:1] == b"\1" else asked.discard)(message[1:])
        tasks.append(loop.create_task(tell()))

    async def tell() -> None:
        async with changed:
            changed.notify_all()

    async def until(count: int) -> None:
        async with changed:
            await changed.wait_for(lambda: len(asked) == count)

    tasks: list[asyncio.Task[None]] = []
    socket = context.socket(zmq.XPUB)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    reader = SubscriberReader(socket)
    reader.start(hear)
    peer = context.socket(zmq.XSUB)
    peer.setsockopt(zmq.SNDHWM, 0)
    peer.connect(f"tcp://127.0.0.1:{port}")
    for topic in [*TOPICS, HELLO]:
        peer.send(b"\1" + topic)
    await until(len(TOPICS) + 1)
    await reader.read_ends()
    peer.close(0)
    async with changed:
        await changed.wait_for(lambda: len(asked) <= len(TOPICS))
    assert asked, "the whole end was read in one turn: there are too few topics for this test"
    await reader.read_ends()
    assert asked == set()
    reader.close(0)
    await asyncio.gather(*tasks)

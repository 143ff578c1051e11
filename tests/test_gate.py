"""The gate of a listening TCP socket, by what can connect to it."""

import asyncio
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from aiobus.discovery.gate import RESERVE, Gate
from aiobus.discovery.unix_socket import spare_descriptors

pytestmark = [
    pytest.mark.usefixtures("no_task_is_left"),
    pytest.mark.skipif(sys.platform != "linux", reason="the filter is one of Linux"),
]

SPARE = 200
"""Descriptors that are spare when the gate is made."""


@pytest.fixture
def limited() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit_to(SPARE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def limit_to(spare: int) -> None:
    """This process may open so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft += spare - int(min(spare_descriptors(), soft))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Port:
    """A listening socket with a gate, and what the gate has said."""

    def __init__(self) -> None:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.gate = Gate(self.listener)
        self.said: list[str] = []
        self._opened: list[socket.socket] = []

    def watch(self) -> None:
        self.gate.watch(lambda topic, text: self.said.append(topic))

    def connect(self) -> socket.socket:
        """Begin to connect."""
        made = socket.socket()
        self._opened.append(made)
        made.setblocking(False)
        made.connect_ex(self.listener.getsockname())
        return made

    def accept(self) -> socket.socket:
        made, _ = self.listener.accept()
        self._opened.append(made)
        return made

    def close(self) -> None:
        self.gate.close()
        self.listener.close()
        for each in self._opened:
            each.close()


@pytest.fixture
async def port(limited: None, no_task_is_left: None) -> AsyncIterator[Port]:
    made = Port()
    yield made
    made.close()


@contextmanager
def hogs(spare: int) -> Iterator[None]:
    """Files are open, so that so many descriptors are spare."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(int(spare_descriptors()) - spare)]
    try:
        yield
    finally:
        for each in held:
            os.close(each)


def peer(sock: socket.socket) -> object:
    try:
        return sock.getpeername()
    except OSError:
        return None


async def made(sock: socket.socket) -> None:
    """Return once the connection is made."""
    while peer(sock) is None:
        await turn()


async def turn() -> None:
    await asyncio.sleep(0)


async def test_while_descriptors_are_short_no_connection_comes_in_and_the_others_go_on(
    port: Port,
) -> None:
    early = port.connect()
    await made(early)
    accepted = port.accept()
    with hogs(port.gate.short - 1):
        port.watch()
        assert port.gate.is_shut
        late = port.connect()
        early.send(b"still")
        assert accepted.recv(9) == b"still"
        with pytest.raises(BlockingIOError):
            port.accept()
        assert peer(late) is None
    port.watch()
    assert not port.gate.is_shut
    await made(late)  # the kernel has tried again
    await made(port.connect())
    assert port.said == ["too few descriptors", "descriptors again"]


async def test_a_connection_that_comes_in_shuts_it_though_it_is_not_watched(port: Port) -> None:
    with hogs(port.gate.short):
        await made(port.connect())  # one less is spare
        while not port.gate.is_shut:
            await turn()
    assert port.said == []
    port.watch()
    assert port.said == ["too few descriptors"]
    port.watch()
    assert port.said == ["too few descriptors", "descriptors again"]


async def test_it_looks_again_at_every_later_connection(port: Port) -> None:
    for _ in range(3):
        await made(port.connect())
        for _ in range(3):
            await turn()  # it has looked
        port.accept()
    with hogs(port.gate.short):
        await made(port.connect())
        while not port.gate.is_shut:
            await turn()


async def test_when_all_descriptors_are_used_up_those_that_wait_leave_the_reserve(
    port: Port,
) -> None:
    """As of a loop that was blocked while strangers connected."""
    # Their own ends are descriptors of this process too: made before the rest is used up.
    waiting = [port.connect() for _ in range(2 * port.gate.backlog)]
    with hogs(0):
        port.watch()
        accepted = 0
        while True:
            try:
                port.accept()
            except BlockingIOError:
                break
            accepted += 1
        assert accepted == port.gate.backlog + 1 < len(waiting)
        assert spare_descriptors() == RESERVE


async def test_it_stays_shut_while_there_are_barely_enough(port: Port) -> None:
    shut = port.gate.short - 1
    with hogs(shut):
        port.watch()
        held = int(spare_descriptors()) - shut
    for spare, is_shut in ((port.gate.ample - 1, True), (port.gate.ample, False)):
        with hogs(spare + held):
            port.watch()
            assert port.gate.is_shut == is_shut
    assert port.said == ["too few descriptors", "descriptors again"]


async def test_closed_it_holds_nothing_and_its_port_can_be_listened_at_again(
    limited: None,
) -> None:
    before = spare_descriptors()
    port = Port()
    address = port.listener.getsockname()
    port.close()
    port.gate.close()
    port.watch()
    assert spare_descriptors() == before
    with socket.create_server(address):
        pass


async def test_a_process_that_may_open_few_files_can_accept_connections(limited: None) -> None:
    limit_to(60)
    port = Port()
    port.watch()
    assert not port.gate.is_shut
    await made(port.connect())
    port.close()

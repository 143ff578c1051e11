"""No way to a gateway: whatever a replayed strategy calls, nothing arrives.

The judges are a real gateway in a process of its own, a server, a datagram socket, a ZeroMQ socket,
a FIFO and a terminal, which count what comes, and the descriptors of the replay. The controls: the
same attempts arrive when they are made live.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
from actors import tcp_url
from no_way import REACHES, ROWS, WAYS, Plan, public_callables

SCRIPT = str(Path(__file__).with_name("no_way.py"))
PUBLIC = sorted({*public_callables()})


class World:
    """What is outside of a replay, and what has come to it."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.bind(("127.0.0.1", 0))
        self._datagrams.setblocking(False)
        self._context = zmq.Context()
        self._pull = self._context.socket(zmq.PULL)
        port = self._pull.bind_to_random_port("tcp://127.0.0.1")
        fifo = folder / "fifo"
        os.mkfifo(fifo)
        self._terminal, device = os.openpty()
        self._files = [os.open(fifo, os.O_RDWR | os.O_NONBLOCK), self._terminal, device]
        os.set_blocking(self._terminal, False)
        self.plan = Plan(
            *(f"ipc://{folder}/d", tcp_url()),
            *(self._listener.getsockname()[1], self._datagrams.getsockname()[1]),
            *(f"tcp://127.0.0.1:{port}", str(fifo), os.ttyname(device), str(folder)),
        )
        self._came = self._datagrams_came = self._messages = 0
        self._lines = Counter[str]()
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()
        self._gateway: subprocess.Popen[str] | None = None

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if connection.recv(65_536):
                with self._lock:
                    self._came += 1
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
                while connection.recv(65_536):
                    pass

    def start_gateway(self) -> None:
        """It asks each bus for all orders that its history has."""
        command = [sys.executable, SCRIPT, "gateway", *self.plan[:2], str(self.ledger)]
        self._gateway = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._gateway.stdout is not None
        assert self._gateway.stdout.readline() == "live\n"

    def end_gateway(self) -> None:
        if self._gateway is not None:
            self._gateway.communicate(timeout=20)
            assert self._gateway.returncode == 0

    def attack(self, mode: str, names: list[str]) -> dict[str, tuple[str, bool]]:
        """How each attempt ended, in a process of its own, and if a socket was opened."""
        plan = json.dumps([self.plan, mode, names])
        done = subprocess.run(
            [sys.executable, SCRIPT, "attack", plan],
            capture_output=True,
            text=True,
            timeout=45,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line[0] for line in lines] == names, done.stderr
        assert done.returncode == 0, done.stderr
        return {name: (outcome, has_opened) for name, outcome, has_opened in lines}

    def came(self) -> dict[str, int]:
        """What has come to each judge since the beginning."""
        with suppress(BlockingIOError):
            while self._datagrams.recv(100):
                self._datagrams_came += 1
        while self._pull.poll(50):
            self._pull.recv()
            self._messages += 1
        for name, file in zip(("fifo", "device"), self._files, strict=False):
            with suppress(BlockingIOError):
                while came := os.read(file, 1000):
                    self._lines[name] += came.count(b"\n")
        orders = len(self.ledger.read_text().splitlines())
        found = {
            "gateway": orders,
            "http": self._came,
            "udp": self._datagrams_came,
            "zmq": self._messages,
            **self._lines,
        }
        return {name: count for name, count in found.items() if count}

    def close(self) -> None:
        self.end_gateway()
        for each in (self._listener, self._datagrams, self._pull):
            each.close()
        for file in self._files:
            os.close(file)
        self._context.term()


@pytest.fixture
def world(folder: Path) -> Iterator[World]:
    made = World(folder)
    made.start_gateway()
    yield made
    made.close()


def test_every_public_callable_has_a_row_in_the_table_of_attempts() -> None:
    missing = [name for name in PUBLIC if name not in ROWS]
    assert missing == [], "give each a row in tests/no_way.py: how it might get an order out"
    assert [name for name in ROWS if name not in PUBLIC] == [], "these are no public callables"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["virtual", "paced"])
def test_nothing_arrives_whatever_a_replayed_strategy_calls(world: World, mode: str) -> None:
    found = world.attack(mode, [*ROWS, *WAYS])
    assert world.came() == {}
    assert [name for name, (_, has_opened) in found.items() if has_opened] == []
    world.end_gateway()
    world.start_gateway()  # with since=0: nothing waits for it in any history
    assert world.came() == {}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["virtual", "paced"])
def test_a_way_out_ends_the_replay_also_if_its_error_is_caught(world: World, mode: str) -> None:
    names = [name for name, reached in REACHES.items() if reached != "gateway" or "bus" in name]
    found = world.attack(mode, names)
    assert {name: outcome for name, (outcome, _) in found.items()} == dict.fromkeys(
        names, "LeavesProcess"
    )


@pytest.mark.slow
@pytest.mark.parametrize("judge", sorted({*REACHES.values()}))
def test_live_the_same_attempts_arrive(world: World, judge: str) -> None:
    names = [name for name, reached in REACHES.items() if reached == judge]
    world.attack("live", names)
    end = time.monotonic() + 10
    while world.came() != {judge: len(names)} and time.monotonic() < end:
        time.sleep(0.05)
    assert world.came() == {judge: len(names)}

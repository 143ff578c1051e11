"""Keyrings in a directory of a test, the buses of a desk with keys, and who knocks at one."""

import errno
import os
import struct
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from actors import own_host, tcp_url

from aiobus import AsyncEventBus
from aiobus.keyring import Keyring
from aiobus.keyring.changes import add, make_key
from aiobus.keyring.members import EVERYTHING, Member, Members, Rules
from aiobus.wire import (
    Answer,
    Ask,
    PeerId,
    frame,
    heartbeat,
    mail,
    parse_from_publisher,
    parse_from_subscriber,
    topic,
    up,
)


def make(path: Path, *names: str, **rules: Rules) -> Keyring:
    """A keyring with a secret of each name."""
    for name in names:
        rule = rules.get(name, EVERYTHING)
        made = make_key(str(path), name, rule)
        if not made.is_listed:
            add(str(path), Member(name, made.public, rule))
    return Keyring.load(path)


def key() -> str:
    """A public key that no command made."""
    return zmq.curve_keypair()[0].decode()


def replaced(path: Path, data: str | bytes, mode: int | None = None) -> None:
    """Write a file in place of another, as `scp` to a temporary name and `mv` do."""
    before = path.stat()
    new = path.with_suffix(".new")
    new.write_bytes(data.encode() if isinstance(data, str) else data)
    os.chmod(new, before.st_mode & 0o777 if mode is None else mode)
    new.replace(path)


def keyed_bus(path: Path, url: str, name: str, **options: Any) -> AsyncEventBus:
    """A bus with the keys of its name, which is made a member if it is none."""
    if not (path / f"{name}.secret").exists():
        make(path, name)
    return AsyncEventBus(url, name=name, keyring=Keyring.load(path), **options)


class KeyedDesk:
    """A keyring in a directory, and an address of its own."""

    def __init__(self, path: Path, *names: str, **rules: Rules) -> None:
        make(path, *names, **rules)
        self.path = path
        self.url = tcp_url()

    @property
    def members(self) -> Members:
        return Keyring.load(self.path).members

    def write(self, members: Members) -> None:
        """Put a new list in the place of the one that is there."""
        replaced(self.path / "desk.members", members.text)

    def revoke(self, name: str) -> None:
        self.write(self.members.without(name))

    def admit(self, name: str, rules: Rules = EVERYTHING, key: str = "") -> None:
        """Put a member on the list, or give it other rules."""
        members = self.members
        if not key:
            key = members.by_name[name].key
        self.write(members.with_member(Member(name, key, rules)))

    def keys(self, name: str) -> tuple[str, str]:
        """The public and the secret key of a member."""
        keyring = Keyring.load(self.path)
        return keyring.members.by_name[name].key, keyring.secret_of(name)

    def bus(self, name: str, **options: Any) -> AsyncEventBus:
        return keyed_bus(self.path, self.url, name, **options)


def who_of(bus: AsyncEventBus) -> PeerId:
    who: PeerId = bus._transport.session.me  # type: ignore[attr-defined]
    return who


def endpoint_of(bus: AsyncEventBus) -> str:
    return who_of(bus).endpoint


EVENT = struct.Struct("=HI")
LET_IN = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
FAILED = {
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "refused",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "protocol",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "broken off",
}


class Knocker:
    """A socket that tries to be let in at an endpoint. With keys: the public and the secret one,
    and that of the server. It asks for `asks` at once.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        server: str = "",
        keys: tuple[str, str] | None = None,
        is_plain: bool = False,
        reconnects: bool = False,
        asks: tuple[bytes, ...] = (b"TRADE\0",),
    ) -> None:
        self.context: zmq.asyncio.Context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.XSUB)
        self.socket.set(zmq.SNDHWM, 0)
        self.socket.set(zmq.HANDSHAKE_IVL, 3_000)  # by default it waits for 30 s
        if not reconnects:
            self.socket.set(zmq.RECONNECT_IVL, -1)
        if is_plain:
            self.socket.set(zmq.PLAIN_USERNAME, b"feed")
            self.socket.set(zmq.PLAIN_PASSWORD, b"feed")
        if keys is not None:
            self.socket.set(zmq.CURVE_SERVERKEY, server.encode())
            self.socket.set(zmq.CURVE_PUBLICKEY, keys[0].encode())
            self.socket.set(zmq.CURVE_SECRETKEY, keys[1].encode())
        self.monitor = self.socket.get_monitor_socket(LET_IN | sum(FAILED) | zmq.EVENT_DISCONNECTED)
        self.socket.connect(endpoint)
        self.asks = asks

    async def outcome(self) -> str:
        """How the handshake ends: "let in", or why not."""
        asks, self.asks = self.asks, ()
        for each in asks:
            await self.socket.send(b"\1" + each)
        while True:
            event, *_ = await self.monitor.recv_multipart()
            number, value = EVENT.unpack_from(event)
            if number == LET_IN:
                return "let in"
            if number in FAILED:
                return "mute" if value == errno.EAGAIN else FAILED[number]
            if number == zmq.EVENT_DISCONNECTED:
                return "cut"

    def now(self, message: bytes) -> None:
        """Send without the loop."""
        super(zmq.asyncio.Socket, self.socket).send(message)

    async def heard(self, seconds: float) -> list[bytes]:
        """All that comes until nothing has come for so long."""
        found = []
        while await self.socket.poll(int(seconds * 1000)):
            found.append(await self.socket.recv())
        return found

    def close(self) -> None:
        self.context.destroy(linger=0)


class Rogue:
    """A member with a valid key that is no aiobus: it links like one, and otherwise sends what it
    is told, up to one bus and down to those that listen to it.
    """

    def __init__(self, desk: KeyedDesk, name: str) -> None:
        self.name = name
        self.desk = desk
        self.keys = desk.keys(name)
        self.context: zmq.asyncio.Context = zmq.asyncio.Context()
        self.down = self.context.socket(zmq.XPUB)
        self.listen(self.down, self.keys)
        host = own_host()  # at which no other process takes the port once it is free again
        port = self.down.bind_to_random_port(f"tcp://{host}")
        self.address = host, port
        self.who = PeerId(name, 1, f"tcp://{host}:{port}")
        self.seq = 0
        self.up: Any = None

    @staticmethod
    def listen(socket: Any, keys: tuple[str, str]) -> None:
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, keys[1].encode())
        socket.set(zmq.CURVE_PUBLICKEY, keys[0].encode())

    def knock(self, endpoint: str, server: str, context: Any = None) -> Any:
        """One more socket up to a bus."""
        socket = (context or self.context).socket(zmq.XSUB)
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.CURVE_SERVERKEY, server.encode())
        socket.set(zmq.CURVE_PUBLICKEY, self.keys[0].encode())
        socket.set(zmq.CURVE_SECRETKEY, self.keys[1].encode())
        socket.connect(endpoint)
        return socket

    async def link(self, bus: AsyncEventBus) -> "Rogue":
        """Return when the bus has answered. It is linked once `live` has answered as well."""
        self.up = self.knock(endpoint_of(bus), self.desk.keys(bus.name)[0])
        await self.up.send(b"\1" + self.who.topic)
        await self.ask()
        return self

    async def question(self, message: bytes) -> None:
        """Send a question up, as a bus with keys does."""
        await self.up.send(b"\1" + message)
        await self.up.send(b"\0" + message)

    async def ask(self, nonce: int = 1) -> Answer:
        """Return when the bus has answered, and so has read all that was sent up before. What else
        comes is left out.
        """
        await self.question(up(Ask("*", nonce, self.who)))
        while True:
            message = await self.up.recv()
            if message.startswith(self.who.topic):
                reply = parse_from_publisher(message, self.who)
                if isinstance(reply, Answer) and reply.nonce == nonce:
                    return reply

    async def _answer(self, message: bytes) -> None:
        if not message.startswith(b'\1["?"'):
            return
        asked = parse_from_subscriber(message[1:])
        assert isinstance(asked, Ask)
        await self.down.send(mail(asked.who, Answer(asked.nonce, self.who, 60.0, self.seq, True)))

    async def publish(
        self, data: int, type: str = "TRADE", query: str = "", name: str = ""
    ) -> None:
        """An event."""
        prev, self.seq = self.seq, self.seq + 1
        row = b'[%d,1.0,"%b","",%d]' % (self.seq, type.encode(), data)
        message = frame(topic(query or type), name or self.name, 1, prev, self.seq, [row])
        await self.down.send(message)

    async def live(self) -> None:
        """Go on answering and giving signs of life, until cancelled."""
        while True:
            await self.down.send(heartbeat(self.name, 1, self.seq))
            if await self.down.poll(500):
                await self._answer(await self.down.recv())

    def close(self) -> None:
        self.context.destroy(linger=0)

"""The sockets of a bus with keys: each connection is encrypted, and each message is known to be of
the member whose key made its connection (CURVE, ZeroMQ RFC 26).

Owns which key goes with which socket, who may be sent which topic, and the links that are cut once
a key or its rules are taken back. Must not know what the bytes say: whether a member may be sent a
topic, the conversation decides (`KeyCallbacks`).

A message that came to an XSUB does not tell who sent it, so there is one for each peer, which has
the key of that peer and reaches no other. On the XPUB, each message has the key and the number of
its connection, which the authenticator gave it. There a topic is sent to nobody before it is
admitted (XPUB_MANUAL).

libzmq gives the topic that is admitted to the connection of the *last subscription* it has taken
from a queue of its own. A message that is no subscription takes one from that queue as well, so
what follows in the same queue would be given to other connections: one peer's mailbox to another
(measured with libzmq 4.3.5). So questions are sent as a subscription and its withdrawal, and a
message of another kind, which no member sends, ends its connection. Until the queue is empty
nothing is admitted, and the connections that asked meanwhile are ended: they ask again.
"""

import asyncio
import errno
import logging
import os
import weakref
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import zmq

from aiobus.clock import elapsed
from aiobus.discovery import Discovery
from aiobus.keyring import Keyring
from aiobus.keyring.files import Hidden
from aiobus.keyring.members import Member
from aiobus.mesh import FromPublisher, FromSubscriber, KeyCallbacks
from aiobus.mesh.sockets import SocketReader, SubscriberReader, ZmqNetwork, place_on_wire
from aiobus.mesh.zap import DOMAIN, EVENT, Authenticator, proven
from aiobus.wire import HEARTBEATS

__all__ = ["KeyedNetwork"]

QUESTION = b"["
"""The first byte of a question, and of no topic."""
HANDSHAKE_MS = 2_000
"""Milliseconds for a handshake, which takes some. A peer that says nothing is tried again after."""
CUT_MS = 45_000
"""Milliseconds without an acknowledgement of the other host, then the kernel ends a connection. So
of a network that is cut for a minute, a bus hears that its peers have left.
"""
TRY_AGAIN = 2.0
"""Seconds until a link is tried again that the other side refused for good, or that cannot be: the
cause may be mended. ZeroMQ by itself never tries the first again, and the second 8 times a second.
"""
WAITING_QUESTIONS = 16
"""Questions to a peer that wait until its link is made. Else the first ones to a peer whose key is
just being read would be lost, and asked again with the next tick.
"""
UNLISTED = 1.0
"""Seconds after which a peer is said not to be on the list: until then a newer list may be read."""
PATIENCE = 3
"""Handshakes in a row that end without a word, before the key of the peer is taken to be wrong: a
process that ends may break one off.
"""
WAITING = 2
"""Subscriptions of one connection that ZeroMQ takes at once. With 1, as without keys, no message
ever comes up a connection with keys (libzmq 4.3.5, measured).
"""
HELD = 1.5
"""Seconds that a link has to be made once the name of the bus there has changed, before another bus
may say that it listens there.
"""
MAX_LINKS = 4_096
"""Connections whose topics are remembered. One more is ended."""
MAX_QUESTIONS = 64
"""Questions of one connection that are not withdrawn. A member withdraws each at once."""
MAX_ASKED = 32_768
"""Topics and questions that wait for one peer, beside the topics that this bus asks for. A peer may
give signs of life and never read: without a bound, each acknowledgement that it calls for is kept.
"""
OUTCOMES = int(
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)

log = logging.getLogger("aiobus.mesh")


class Topics:
    """The topics that each connection has asked for: libzmq tells of the end of a connection by
    withdrawing each of them, without its number. Pure: who may have a topic is not known here.
    `is_alive`: true while the connection of this number is there.
    """

    def __init__(self, is_alive: Callable[[int], bool]) -> None:
        self._is_alive = is_alive
        self._of_link: dict[int, set[bytes]] = {}
        self._askers: Counter[bytes] = Counter()
        self._questions: dict[int, set[bytes]] = {}
        """Those that were not withdrawn yet."""
        self._hellos: dict[bytes, list[int]] = {}
        """The connections of each hello that was admitted, the oldest first."""

    def __len__(self) -> int:
        return len(self._of_link)

    def add(self, topic: bytes, link: int) -> None:
        """A connection asks for a topic; again: nothing, as in libzmq."""
        asked = self._of_link.setdefault(link, set())
        if topic not in asked:
            asked.add(topic)
            self._askers[topic] += 1

    def remove(self, topic: bytes, link: int) -> bool:
        """A connection withdraws a topic. True if none has it any more; False also if it never had
        asked.
        """
        asked = self._of_link.get(link, set())
        if topic not in asked:
            return False
        asked.discard(topic)
        if not asked:
            del self._of_link[link]
        is_last = self._leave(topic)
        return self._part(topic, [link]) if _is_hello(topic) else is_last

    def greet(self, hello: bytes, link: int) -> None:
        """The hello of this connection was admitted."""
        links = self._hellos.setdefault(hello, [])
        if link not in links:
            links.append(link)

    def end(self, topic: bytes) -> bool:
        """A connection has ended that had asked for this topic; its other topics are told as well.
        True if none has it any more.
        """
        if topic not in self._askers:
            return False
        is_last = self._leave(topic)
        if not _is_hello(topic):
            return is_last
        links = self._hellos.get(topic, [])
        # One that asked for the hello of another, in vain, counts as an asker, and may have ended.
        gone = [link for link in links if not self._is_alive(link)]
        if not gone:
            gone = links[: max(0, len(links) - self._askers.get(topic, 0))]
        return self._part(topic, gone)

    def ask(self, question: bytes, link: int) -> bool:
        """A question comes, as a topic. False if so many were not withdrawn yet that this is no
        member: ZeroMQ keeps each of them.
        """
        questions = self._questions.setdefault(link, set())
        questions.add(question)
        return len(questions) <= MAX_QUESTIONS

    def answer(self, question: bytes, link: int) -> None:
        """It is withdrawn."""
        questions = self._questions.get(link, set())
        questions.discard(question)
        if not questions:
            self._questions.pop(link, None)

    def forget(self, link: int) -> None:
        """This connection has ended, as is known otherwise. What it has asked for counts until
        libzmq withdraws that.
        """
        self._of_link.pop(link, None)
        self._questions.pop(link, None)

    def _leave(self, topic: bytes) -> bool:
        self._askers[topic] -= 1
        if self._askers[topic] > 0:
            return False
        del self._askers[topic]
        return True

    def _part(self, hello: bytes, gone: list[int]) -> bool:
        """True if these were the last connections of the bus that says so."""
        links = self._hellos.get(hello)
        if links is None:
            return False
        for link in gone:
            if link in links:
                links.remove(link)
                self.forget(link)
        if links:
            return False
        del self._hellos[hello]
        return True


def _is_hello(topic: bytes) -> bool:
    return topic[:1] == b"~" and topic != HEARTBEATS


class KeyedSubscriberReader(SubscriberReader):
    """Reads the socket that others subscribe at, and admits their topics. `user` takes the User-Id
    of a message, and returns the name and the number of its connection; the name is "" if its key
    is no member's any more.
    """

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        user: Callable[[str, int], tuple[str, int]],
        is_alive: Callable[[int], bool],
    ) -> None:
        super().__init__(socket)
        self._user = user
        self._is_alive = is_alive
        self.topics = Topics(is_alive)
        self._is_mixed = False
        """A message was read that is no subscription: until the queue is empty, libzmq may give a
        topic to another connection than the one that asked.
        """
        self.admit: Callable[[bytes, int, str], bool] = lambda topic, link, name: False
        self.on_strange: Callable[[str], None] = lambda name: None
        self.end_link: Callable[[int], None] = lambda link: None

    def run(self, is_readable: bool = False) -> None:
        """Read for one slice of time."""
        super().run(is_readable)
        if self._is_mixed and not (self.is_closed or self.has_message()):
            self._is_mixed = False

    def _read(self, now: float) -> None:
        frame = self.socket.recv(zmq.NOBLOCK, copy=False)
        message = frame.bytes
        try:
            user, descriptor = frame.get("User-Id"), frame.get(zmq.SRCFD)
        except zmq.ZMQError:  # a withdrawal of ZeroMQ itself: its connection has ended
            self._is_within_end = True
            self._guarded(self._on_end, message)
            return
        self._is_within_end = False
        self._guarded(self._on_message, message, *self._user(str(user), int(descriptor)))

    def _guarded(self, step: Callable[..., None], message: bytes, *who: Any) -> None:
        try:
            step(message, *who)
        except Exception:
            log.exception("a message of %d bytes could not be handled", len(message))

    def _on_end(self, message: bytes) -> None:
        if message[1:2] != QUESTION and self.topics.end(message[1:]):
            self._receive(message, None, "")

    def _on_message(self, message: bytes, name: str, link: int) -> None:
        sign, topic = message[:1], message[1:]
        if not name:
            self.end_link(link)
        if sign == b"\1":
            self._on_asked(message, topic, name, link)
        elif sign == b"\0" and topic[:1] == QUESTION:
            self.topics.answer(topic, link)
        elif sign == b"\0":
            if self._is_mixed:
                self.end_link(link)  # libzmq might withdraw it of another connection
            else:
                self.socket.set(zmq.UNSUBSCRIBE, topic)
            if self.topics.remove(topic, link) and name:
                self._receive(message, link, name)
        else:
            self._is_mixed = True
            self.on_strange(name)
            self.end_link(link)

    def _on_asked(self, message: bytes, topic: bytes, name: str, link: int) -> None:
        if topic[:1] == QUESTION:
            if not self.topics.ask(topic, link):
                self.end_link(link)
            elif name:
                self._receive(topic, link, name)
            return
        self.topics.add(topic, link)
        if self._is_mixed or len(self.topics) > MAX_LINKS:
            self.end_link(link)  # it may not be given what it asks for; it connects again and asks
        elif name and self.admit(topic, link, name) and self._is_alive(link):
            # Of one that has ended, libzmq may have given its place to the next connection by now,
            # which would get the topic.
            self.socket.set(zmq.SUBSCRIBE, topic)
            if _is_hello(topic):
                self.topics.greet(topic, link)
            self._receive(message, link, name)


class Monitor(SocketReader):
    """Reads how the handshakes of one link end, so that the I/O thread never waits for it."""

    def __init__(self, socket: "zmq.Socket[bytes]", on_outcome: Callable[[int, int], None]) -> None:
        super().__init__(socket)
        self._on_outcome = on_outcome

    def _read(self, now: float) -> None:
        event, *_ = self.socket.recv_multipart(zmq.NOBLOCK)
        self._on_outcome(*EVENT.unpack_from(event))


class Incoming(NamedTuple):
    """A connection that was made to this bus, as its first message shows it."""

    descriptor: int
    file: tuple[int, int] | None
    """Which file that is: another may have the number later. None: it had ended already."""
    key: str
    member: Member | None
    """Whose key that was. If it is no more, or has other rules, the connection is ended."""


class PeerLink:
    """The link to one peer: its sockets, while it is tried or made."""

    def __init__(self, endpoint: str, name: str, *, is_renamed: bool = False) -> None:
        self.endpoint = endpoint
        self.name = name
        self.made = elapsed()
        self.is_renamed = is_renamed
        """There was a link to the same endpoint, to a bus of another name."""
        self.is_up = False
        """Who listens there has proven to have the key of that name, and the connection is there.
        """
        self.is_put_off = False
        """Its sockets could not be made, which was said."""
        self.key = ""
        self.xsub: SocketReader | None = None
        self.monitor: Monitor | None = None
        self.broken_off = 0
        """Handshakes in a row that ended without a word."""
        self.again: asyncio.TimerHandle | None = None
        self.questions: deque[bytes] = deque(maxlen=WAITING_QUESTIONS)
        """What was asked of the peer while there was no socket."""


class KeyedNetwork(ZmqNetwork):
    """The `Network` of `tcp://` with a keyring."""

    def __init__(self, discovery: Discovery, high_water_mark: int, keyring: Keyring) -> None:
        super().__init__(discovery, high_water_mark)
        self.keyring = keyring
        self.members = keyring.members
        self._public = ""
        self._secret = Hidden(b"")
        self._links: dict[str, PeerLink] = {}  # by endpoint
        self._topics: Counter[bytes] = Counter()
        self._incoming: dict[int, Incoming] = {}
        """By the number of the connection; of those with one descriptor, the last."""
        self._at: dict[int, int] = {}
        """The number of the last connection that had a descriptor."""
        self._from_publisher: FromPublisher | None = None
        self._on_keys: KeyCallbacks | None = None
        self._monitors = count()
        self._problem = ""
        self._xpub: KeyedSubscriberReader

    def open(self, name: str) -> None:
        """Make the sockets. Raises also KeyringError if this host has no secret key of `name`."""
        self._secret = Hidden(self.keyring.secret_of(name).encode())
        self._public = zmq.curve_public(self._secret.value).decode()
        self.members = self.keyring.members
        super().open(name)

    def _open_sockets(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        context.set(zmq.MAX_SOCKETS, MAX_LINKS * 4)
        socket = self._socket(context, zmq.XPUB)
        socket.set(zmq.XPUB_MANUAL, 1)
        socket.set(zmq.RCVHWM, WAITING)
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.ZAP_DOMAIN, DOMAIN.encode())
        # Without the authenticator no connection is let in.
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._xpub = KeyedSubscriberReader(socket, self._user, self._is_alive)
        self._xpub.end_link = self.end_link
        self._readers.append(self._xpub)
        # Before it listens: who comes while there is none is refused.
        authenticator = Authenticator(
            context, socket, self.keyring, _weakly(self._on_knock), _weakly(self._on_change)
        )
        self._threads.append(authenticator.thread)

    def _socket(self, context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
        socket = super()._socket(context, kind)
        socket.set(zmq.CURVE_PUBLICKEY, self._public.encode())
        socket.set(zmq.CURVE_SECRETKEY, self._secret.value)
        socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.set(zmq.TCP_MAXRT, CUT_MS)
        return socket

    def start(
        self, from_subscriber: FromSubscriber, from_publisher: FromPublisher, keys: KeyCallbacks
    ) -> None:
        """Hand over what arrives, from the next turn of the loop on."""
        self._from_publisher, self._on_keys = from_publisher, keys
        self._xpub.admit, self._xpub.on_strange = keys.admit, keys.on_strange
        self._xpub.start(from_subscriber)
        for link in self._links.values():
            if link.xsub is not None:
                link.xsub.start(from_publisher)

    # Who is there.

    def _user(self, user_id: str, descriptor: int) -> tuple[str, int]:
        key, number = proven(user_id)
        if (members := self.keyring.members) is not self.members:
            self.members = members  # `_on_change` is about to be called
        member = self.members.by_key.get(key)
        found = self._incoming.get(number)
        if found is None:
            found = self._incoming[number] = self._come(number, descriptor, key, member)
        is_member = member is not None and member == found.member
        return (member.name if member is not None and is_member else ""), number

    def _come(self, number: int, descriptor: int, key: str, member: Member | None) -> Incoming:
        """A first message was read of a connection, which may have ended meanwhile."""
        before = self._at.get(descriptor, 0)
        if before > number:
            return Incoming(descriptor, None, key, member)
        self._at[descriptor] = number
        if self._incoming.pop(before, None) is not None:
            self._xpub.topics.forget(before)
        return Incoming(descriptor, _file(descriptor), key, member)

    def _is_alive(self, link: int) -> bool:
        found = self._incoming.get(link)
        return (
            found is not None and found.file is not None and found.file == _file(found.descriptor)
        )

    def end_link(self, link: int) -> None:
        """End the connection of this number, if there is one."""
        if self._is_alive(link):
            super().end_link(self._incoming[link].descriptor)

    def _on_knock(self, address: str, cause: str, name: str, times: int) -> None:
        if self._on_keys is not None:
            self._on_keys.on_refused(address, cause, name, times)

    def _refused(self, link: PeerLink, cause: str) -> None:
        self._on_knock(link.endpoint, cause, link.name, 1)

    def _on_change(self) -> None:
        """The list was read again: cut the links of those that it does not have any more, or whose
        rules are others, and try those anew that it may have now.
        """
        self.members = self.keyring.members
        if self._context is None:
            return
        self._report_problem()
        for number, found in list(self._incoming.items()):
            if self.members.by_key.get(found.key) != found.member:
                self.end_link(number)
        for link in list(self._links.values()):
            member = self.members.by_name.get(link.name)
            if ("" if member is None else member.key) != link.key or link.again is not None:
                self._break(link)
                self._make(link)
        if self._on_keys is not None:
            self._on_keys.on_members()

    def _report_problem(self) -> None:
        before, self._problem = self._problem, self.keyring.problem
        if self._on_keys is None or before == self._problem:
            return
        if not self._problem:
            log.info("the keyring can be read again: %s", self.keyring.path)
            return
        text = f"the keyring cannot be read again, and stays as it was: {self._problem}"
        if self.keyring.list_problem:
            text += "; until then no bus is let in that is not linked"
        self._on_keys.on_problem("the keyring", text)

    # Links to others.

    def connect(self, endpoint: str, name: str) -> None:
        """Link to the bus `name` that listens there, once."""
        if self._context is None:
            return
        link = self._links.get(endpoint)
        if link is not None and link.name == name:
            return
        if is_renamed := link is not None:
            self.disconnect(endpoint)
        link = self._links[endpoint] = PeerLink(endpoint, name, is_renamed=is_renamed)
        self._connected.setdefault(place_on_wire(endpoint), set()).add(endpoint)
        self._make(link)

    def _make(self, link: PeerLink) -> None:
        if self._context is None or self._links.get(link.endpoint) is not link:
            return  # what was read last on its sockets has ended it
        member: Member | None = self.members.by_name.get(link.name)
        link.key = "" if member is None else member.key
        if member is None:
            is_revoked = link.name in self.members.revoked.values()
            # One that was put on the list and started at once may be here before the list is.
            if is_revoked or (left := link.made + UNLISTED - elapsed()) <= 0:
                self._refused(link, "revoked" if is_revoked else "unlisted")
            else:
                link.again = asyncio.get_running_loop().call_later(left, self._make_again, link)
            return  # until the list has it
        try:
            self._open_link(link, self._context, member)
        except zmq.ZMQError as error:  # no descriptor is left
            if self._on_keys is not None and not link.is_put_off:
                text = f"{link.name} cannot be linked yet, and is tried again: {error}"
                self._on_keys.on_problem(f"no link to {link.name} can be made", text)
            link.is_put_off = True
            loop = asyncio.get_running_loop()
            link.again = loop.call_later(TRY_AGAIN, self._make_again, link)
        else:
            link.is_put_off = False

    def _open_link(
        self, link: PeerLink, context: "zmq.Context[zmq.Socket[bytes]]", member: Member
    ) -> None:
        """Make its sockets. Raises ZMQError, and leaves none open then."""
        place = place_on_wire(link.endpoint)
        made: list[zmq.Socket[bytes]] = []
        try:
            made.append(socket := self._socket(context, zmq.XSUB))
            socket.set(zmq.SNDHWM, MAX_ASKED + len(self._topics))
            socket.set(zmq.CURVE_SERVERKEY, member.key.encode())
            socket.set(zmq.IPV6, "[" in place)
            # Of the link before, the address may still be taken: ZeroMQ frees it later.
            address = f"inproc://link-{next(self._monitors)}"
            socket.monitor(address, OUTCOMES)
            made.append(outcomes := context.socket(zmq.PAIR))
            self._sockets.append(outcomes)
            outcomes.linger = 0
            outcomes.connect(address)
            socket.connect(place)
        except zmq.ZMQError:
            for each in made:
                self._sockets.remove(each)
                each.close()
            raise
        link.monitor = Monitor(outcomes, lambda event, value: self._on_outcome(link, event, value))
        link.xsub = SocketReader(socket, member.name)
        self._readers += [link.monitor, link.xsub]
        link.monitor.start(_leave)
        for topic in sorted(self._topics):  # as ZeroMQ does it after a break
            link.xsub.send(b"\1" + topic)
        while link.questions:
            question = link.questions.popleft()
            link.xsub.send(b"\1" + question)
            link.xsub.send(b"\0" + question)
        if self._from_publisher is not None:
            link.xsub.start(self._from_publisher)

    def _on_outcome(self, link: PeerLink, event: int, value: int) -> None:
        if link.xsub is None:
            return
        cause = ""
        link.is_up = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        if event == zmq.EVENT_DISCONNECTED:
            return
        if link.is_up:
            link.broken_off = 0
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            cause = "refused"
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            cause = "plain"
        elif value == errno.EAGAIN:
            link.broken_off = 0  # who has another key does not stay silent, but breaks off
            self._refused(link, "mute")  # ZeroMQ tries again
        else:
            link.broken_off += 1
            cause = "key" if link.broken_off >= PATIENCE else ""
        if cause:
            self._refused(link, cause)
            self._break(link)
            loop = asyncio.get_running_loop()
            link.again = loop.call_later(TRY_AGAIN, self._make_again, link)

    def _make_again(self, link: PeerLink) -> None:
        link.again = None
        self._make(link)

    def _break(self, link: PeerLink) -> None:
        """Close the sockets of a link. What has arrived on them is read before."""
        if link.again is not None:
            link.again.cancel()
            link.again = None
        # What is read last may end the link as well: then there is nothing left to close.
        xsub, monitor = link.xsub, link.monitor
        link.xsub = link.monitor = None
        link.is_up = False
        if xsub is None or monitor is None:
            return
        xsub.run_dry(self._high_water_mark)
        xsub.socket.monitor(None, 0)
        for reader in (xsub, monitor):
            self._readers.remove(reader)
            self._sockets.remove(reader.socket)
            reader.close(0)

    def may_listen(self, endpoint: str, name: str) -> bool:
        """False if a bus of another name has proven to listen there, or has a moment to do so: a
        member says itself where it listens, and would cut off another by saying that it is there.
        """
        link = self._links.get(endpoint)
        if link is None or link.name == name:
            return True
        return not (link.is_up or (link.is_renamed and elapsed() - link.made < HELD))

    def disconnect(self, endpoint: str) -> None:
        """End the link, after reading it."""
        link = self._links.get(endpoint)
        if link is None:
            return
        self._break(link)
        if self._links.pop(endpoint, None) is not None:
            place = place_on_wire(endpoint)
            linked = self._connected.get(place, set())
            linked.discard(endpoint)
            if not linked:
                self._connected.pop(place, None)

    def subscribe(self, topic: bytes) -> None:
        """Ask every publisher for a topic."""
        self._topics[topic] += 1
        if self._topics[topic] == 1:
            self._up(b"\1" + topic)

    def unsubscribe(self, topic: bytes) -> None:
        """Withdraw it."""
        self._topics[topic] -= 1
        if self._topics[topic] <= 0:
            del self._topics[topic]
            self._up(b"\0" + topic)

    def ask(self, question: bytes, to: str) -> None:
        """Send a question, as a subscription that is withdrawn at once."""
        for link in self._links.values():
            if to not in (link.name, "*"):
                continue
            if link.xsub is not None:
                self._send_up(link.xsub, b"\1" + question)
                self._send_up(link.xsub, b"\0" + question)
            elif to != "*":
                link.questions.append(question)

    def _up(self, message: bytes) -> None:
        for link in self._links.values():
            if link.xsub is not None:
                self._send_up(link.xsub, message)

    def check_wakeups(self) -> None:
        """Look for messages that did not wake the reader. Forget connections that have ended. To be
        called each second.
        """
        self._look_at_clock()
        if not self._xpub.is_closed and not self._xpub.has_message():  # else it may be of one
            for number in [each for each in self._incoming if not self._is_alive(each)]:
                del self._incoming[number]
                self._xpub.topics.forget(number)
        for reader in list(self._readers):
            reader.check_wakeup()

    async def close(self, timeout: float) -> None:
        """End all links, and nothing is tried again."""
        for link in self._links.values():
            if link.again is not None:
                link.again.cancel()
        self._links.clear()
        await super().close(timeout)


def _leave(message: bytes, beside: Any, name: str) -> None:
    """The monitor hands over what it reads by itself."""


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """A call of the method while its object is there: a thread must not keep a bus alive that was
    never closed.
    """
    found = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        if (alive := found()) is not None:
            alive(*arguments)

    return call


def _file(descriptor: int) -> tuple[int, int] | None:
    """Which file a descriptor is now; None if it is none."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino

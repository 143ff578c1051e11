"""The `Transport` of `ipc://` and `tcp://`: the session of one bus on the event loop.

Owns what waits and what has a time: `start`, `subscribe`, `flush` and `close`, the timers, and the
tasks that probe endpoints. Owns the network and the discovery, side by side. Must not know what a
message says or who is there (`session`).
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial

from aiobus.catchup import CatchUp
from aiobus.clock import elapsed, is_virtual
from aiobus.diagnostics import Diagnostics
from aiobus.discovery import Discovery, DiscoveryCallbacks, Member
from aiobus.errors import BusClosed, NameInUse, NotPermitted
from aiobus.history import Want
from aiobus.keyring.members import Rules
from aiobus.limits import KEEPER
from aiobus.mesh import Driver, KeyCallbacks, Network, Probe
from aiobus.mesh.confirm import Confirmations, Readers
from aiobus.mesh.session import Session
from aiobus.presence import Peer
from aiobus.publisher import Publisher, Route
from aiobus.query import Query
from aiobus.refusals import TELLS, Refusal, Refusals, words
from aiobus.rows import Source
from aiobus.transport import Standing
from aiobus.wire import PeerId

__all__ = ["MeshTransport"]

START_SECONDS = 5.0
LOOK = 0.05
"""Seconds between two looks whether an address has answered, while a flush waits for it."""
GLANCE = 0.25
"""Seconds that a start waits for observers, and that what was sent to them has to leave."""
TICK = 1.0
"""Seconds between heartbeats, and between looks at what is silent or unanswered."""
FINAL = frozenset({"refused", "key", "plain"})
"""Why a link that was tried is not made, as is known at once: it is tried again, and no call waits.
"""
WATCH = 0.1
"""Seconds between two looks at the own place. A process that uses up its descriptors between them
is aborted if another process connects before the next.
"""

log = logging.getLogger("aiobus.mesh")


class MeshTransport:
    """The transport of one bus, over `network`, with the peers that `discovery` finds."""

    def __init__(self, url: str, network: Network, discovery: Discovery) -> None:
        self.url = url
        self.network = network
        self.discovery = discovery
        self.session: Session | None = None
        """The conversation, from the middle of `start` on."""
        self._confirmations: Confirmations | None = None
        """None before `start` and after `close`."""
        self._is_closing = False
        self._missing: Collection[str] = ()
        """Who did not confirm everything in the last flush."""
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._probes: set[asyncio.Task[None]] = set()
        self._readers: Readers | None = None
        self._context = Context()
        self._refusals = Refusals()
        self._reported: Collection[str] = []
        """Addresses that were reported as unreached."""
        self._unconfirmed: set[str] = set()
        """Addresses that were unreached when something was subscribed."""

    def __str__(self) -> str:
        return self.url

    @property
    def refused(self) -> int:
        """Messages and queries that were not of the protocol."""
        return 0 if self.session is None else self.session.refused

    @property
    def peers(self) -> Sequence[Peer]:
        """The buses that are linked now, by name."""
        if self.session is None or self._confirmations is None:
            return []
        now = elapsed()
        return [
            peer.shown(now)
            for peer in sorted(self.session.links, key=lambda peer: peer.name)
            if peer.is_there
        ]

    async def until_peer(self, name: str, query: Query | None) -> Peer:
        """Wait until a bus of this name is linked, has subscribed to `query`, and has confirmed to
        be where this bus is. Raises BusClosed.
        """
        if self._confirmations is None:
            raise BusClosed("the bus is closed")
        peer = await self._confirmations.until_there(name, query)
        return peer.shown(elapsed())

    @property
    def unmet(self) -> Collection[str]:
        """Names of buses that are known to be there, and have not answered. Without observers."""
        if self.session is None or self._confirmations is None:
            return ()
        links = self.session.links
        found = {
            peer.name
            for peer in links
            if (links.is_awaited(peer) or peer.other_version)
            and not (peer.is_observer or peer.is_refusing)
        }
        return sorted(found)

    @property
    def refusing(self) -> Mapping[str, str]:
        """Why buses that are known to be there are not linked because of keys, by name. Without
        observers.
        """
        if self.session is None or self._confirmations is None:
            return {}
        return {
            peer.name: words(Refusal(peer.endpoint, peer.refusal, peer.name))
            for peer in sorted(self.session.links, key=lambda peer: peer.name)
            if peer.is_refusing and not peer.is_observer
        }

    @property
    def unreached(self) -> Collection[str]:
        """Addresses that do not answer: there may be buses that this one has not met."""
        return () if self._confirmations is None else sorted(self.discovery.unreached)

    is_alone = False

    def why_deaf(self, name: str) -> str:
        """Nothing keeps a peer from answering but what it says itself."""
        return ""

    @property
    def has_keeper(self) -> bool:
        """True if a peer with the name of a keeper is there, or may be."""
        peers = () if self.session is None or self._confirmations is None else self.session.links
        return any(
            each.name == KEEPER and not (each.has_left or each.other_version or each.is_refusing)
            for each in peers
        )

    # Coming.

    async def start(self, publisher: Publisher, diagnostics: Diagnostics) -> None:
        """Join. Wait until every bus that is there is linked, or known not to be because of keys,
        or 5 s; then log which are not.

        Raises NameInUse if another of this name has started, is the one of two that stays, or does
        not answer and may be frozen. Cancelling or failing leaves nothing open once `close` was
        called.
        """
        self._loop = asyncio.get_running_loop()
        self._diagnostics = diagnostics
        self._callbacks = DiscoveryCallbacks(
            *(self.find, diagnostics.trouble, diagnostics.fail, self._on_told, self._on_stranger),
            on_gone=self._lose,
        )
        self._publisher = publisher
        try:
            self.network.open(publisher.name)
            members = await self.discovery.join(
                publisher.name, self._bind, self.find, observes=publisher.observes
            )
            self._check_open()
        except BaseException:
            await self._leave(0)
            raise
        me = PeerId(publisher.name, publisher.epoch, self.discovery.endpoint)
        log.info("%s listens at %s", me.name, me.endpoint)
        soon = partial(self._loop.call_soon, context=self._context)
        driver = Driver(soon, self._later, self._begin_probe)
        session = Session(
            self.url, me, publisher, self.network, self.discovery, diagnostics, driver
        )
        self.session = session
        self._on_members()
        self._confirmations = Confirmations(session, self.network, self._probe)
        if publisher.pace is not None:
            self._readers = Readers(session, publisher)
        keys = KeyCallbacks(
            session.admit,
            self._on_refused,
            session.refuse_strange,
            self._on_members,
            diagnostics.trouble,
        )
        self.network.start(session.receive_from_subscriber, session.receive_from_publisher, keys)
        session.links.on_refused = self._note_refused
        session.links.out_of_reach = {each.endpoint for each in self.discovery.out_of_reach}
        for member in members:
            session.links.find(member)
        if not is_virtual():  # there is no other network than one in memory, which needs no watch
            self._watch()
        self._tick()
        await self._until_linked(session)
        await self._glance(session)
        session.links.namesakes.is_open = True

    def _bind(self, endpoint: str) -> str:
        self._check_open()
        return self.network.bind(endpoint)

    def _check_open(self) -> None:
        if self._is_closing:
            raise BusClosed("the bus was closed while it started")

    async def _glance(self, session: Session) -> None:
        """Give observers a moment to link: else what a bus publishes that closes at once is seen by
        none of them. A frozen one costs no more than that.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(GLANCE):
                while session.links.is_meeting_observers and not self._is_closing:
                    await session.links.changed.wait()
        self._check_open()

    async def _until_linked(self, session: Session) -> None:
        me, links = session.me, session.links
        try:
            async with asyncio.timeout(START_SECONDS):
                while links.is_meeting and not (links.namesakes.is_late or self._is_closing):
                    try:
                        async with asyncio.timeout(TICK):
                            await links.changed.wait()
                    except TimeoutError:
                        unheard = [
                            peer for peer in links if links.is_awaited(peer) and peer.who is None
                        ]
                        await self._probe(links.dropping(unheard))
        except TimeoutError:
            awaited = [
                peer
                for peer in links
                if links.is_awaited(peer) and not (peer.is_observer or peer.is_refusing)
            ]
            # If the last answer comes just as the time is over, no peer is awaited any more.
            if names := ", ".join(sorted(peer.name for peer in awaited)):
                text = "%s starts without %s: no answer within %g s"
                log.warning(text, me.name, names, START_SECONDS)
        else:
            awaited = [peer for peer in links if links.is_awaited(peer)]
            cut_off = {peer.name for peer in awaited if links.is_cut_off(peer)}
            if names := ", ".join(sorted(cut_off)):
                text = "%s starts without %s: a connection to their host is not answered"
                log.warning(text, me.name, names)
        claimed = {peer.name for peer in links if peer.is_claimed and peer.is_refusing}
        if names := ", ".join(sorted(claimed)):
            log.warning("%s starts without %s: it has not proven its name", me.name, names)
        if names := ", ".join(self.refusing.keys() - claimed):
            log.warning("%s starts without %s: their keys do not allow a link", me.name, names)
        self._check_open()
        # One that says nothing may be frozen, and any process may say hello for one that is not
        # there: an endpoint that refuses has no bus.
        namesakes = links.possible_namesakes()
        absent = await self.discovery.probe_absent(namesakes) if namesakes else []
        if links.namesakes.is_late or not {*namesakes} <= {*absent}:
            raise NameInUse(me.name, self.url)

    def find(self, member: Member) -> None:
        """Discovery has found a member."""
        if self.session is not None:
            self.session.links.find(member)

    def _lose(self, member: Member) -> None:
        if self.session is not None:
            self.session.links.lose(member)

    # The driver of the session.

    def _later(self, seconds: float, step: Callable[[], None]) -> None:
        if not self._is_closing:
            if step in self._timers:
                self._timers[step].cancel()
            self._timers[step] = self._loop.call_later(seconds, step, context=self._context)

    def _begin_probe(self, probe: Probe) -> None:
        if self._is_closing:  # a message that is read behind the bye may ask for one
            return
        task = self._loop.create_task(
            self._probe(probe), name="aiobus probe of endpoints", context=self._context
        )
        self._probes.add(task)
        task.add_done_callback(self._on_end)

    def _on_end(self, task: "asyncio.Task[None]") -> None:
        self._probes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("looking for peers failed", exc_info=error)

    async def _probe(self, probe: Probe) -> None:
        """Carry a probe out. Waits 1 s at most."""
        look = (
            self.discovery.probe_accepting if probe.for_accepting else self.discovery.probe_absent
        )
        try:
            probe.conclude(await look(probe.members))
        finally:
            probe.is_over = True

    def _watch(self) -> None:
        self._later(WATCH, self._watch)
        self.discovery.watch(self._callbacks, self._bind)
        self.network.check_admission(self._callbacks.on_problem)

    def _tick(self) -> None:
        self._later(TICK, self._tick)
        self.network.check_wakeups()
        if self.session is not None:
            self.session.tick(elapsed())
            there = [peer for peer in self.session.links if peer.is_there]
            self._refusals.forget({each.endpoint for each in there}, {each.name for each in there})
            for refusal in self._refusals.due(elapsed()):
                self._report_refused(refusal)
            self._report_unreached(self.session, self.unreached)

    def _report_unreached(self, session: Session, unreached: Collection[str]) -> None:
        if session.links.namesakes.is_open and self._reported != unreached:
            self._reported = unreached
            self._diagnostics.unreached(unreached)
        for address in self._unconfirmed.difference(unreached):
            self._unconfirmed.discard(address)
            for catchup in session.interest:
                catchup.confirm(address)

    # Keys.

    @property
    def _rules(self) -> Rules:
        """What this bus may do."""
        return self.network.members.rules_of(self._publisher.name)

    def _on_members(self) -> None:
        self._publisher.permits = None if self._rules.publish is None else self._rules.may_publish
        self._publisher.forget_routes()
        members = self.network.members
        if self.session is not None and members.number:  # 0 on a desk without keys
            self.session.links.survey.note_list(members.number, members.digest)

    def _on_refused(self, address: str, cause: str, name: str, times: int) -> None:
        self._note_refused(Refusal(address, cause, name, times))
        peer = None if self.session is None else self.session.links.at(address)
        if self.session and peer and cause in FINAL and not peer.is_linked:
            peer.refusal = cause
            self.session.links.changed.wake()
        # Not to who knocks, which may be a thousand times a second: to whom this bus links, at the
        # pace at which it tries.
        if name and cause in TELLS and "://" in address:
            self.discovery.tell_refused(name, TELLS[cause])

    def _on_told(self, source: str, cause: str) -> None:
        """A peer says why it makes no link to this bus."""
        self._note_refused(Refusal("", f"told {cause}", source))

    def _on_stranger(self, address: str, reason: str, times: int) -> None:
        """Discovery has refused a connection, which it says once a minute."""
        text = f"{address or 'a program at an unknown address'} {reason}"
        self._diagnostics.refused(address, "", "stranger", times, text)

    def _note_refused(self, refusal: Refusal) -> None:
        if (said := self._refusals.note(refusal, elapsed())) is not None:
            self._report_refused(said)

    def _report_refused(self, said: Refusal) -> None:
        text = words(said) if said.times == 1 else f"{words(said)} ({said.times:,} times)"
        self._diagnostics.refused(said.address, said.name, said.cause, said.times, text)

    # Subscribing and flushing.

    async def subscribe(self, catchup: CatchUp, timeout: float) -> Collection[str]:
        """Ask every other bus for the query of `catchup`; return the names of those that did not
        confirm, and the addresses that do not answer. They are asked again until they do. Raises
        NotPermitted.
        """
        if not catchup.query.wants_data or self._confirmations is None:
            return ()
        if not (rules := self._rules).may_subscribe(query := catchup.query):
            denied = "*" if query.every else ", ".join(sorted(rules.denied(query)))
            raise NotPermitted(self._publisher.name, "subscribe to", denied)
        missing = await self._confirmations.subscribe(catchup, timeout)
        self._unconfirmed.update(self.unreached)
        return {*missing, *self.unreached}

    def unsubscribe(self, catchup: CatchUp) -> None:
        """Withdraw it. No error if it was not subscribed."""
        if self.session is not None:
            self.session.remove(catchup)

    def ask(self, catchup: CatchUp, source: Source, want: Want, limit: int) -> bool:
        """Ask a source for the next page of what `catchup` misses, as soon as few others do."""
        if self.session is None:
            return False
        return self.session.pages.ask(catchup, source, want, limit, elapsed())

    def doubt(self, source: Source, error: ValueError) -> bool:
        """Rows of a source are no events: count it, say it, and ask the source where it is."""
        if self.session is None:
            return False
        return self.session.doubt(source, error) and self._confirmations is not None

    async def flush(self, timeout: float) -> Collection[str]:
        """Wait until every bus that listens has what it asked for. Returns the names of those that
        did not confirm, or whose link was cut, and the addresses that do not answer; if something
        was published, it waits for these as well.
        """
        if self.session is None or self._confirmations is None:
            return ()
        self._missing = await self._flush_all(self.session, self._confirmations, timeout)
        return self._missing

    async def _flush_all(
        self, session: Session, confirmations: Confirmations, timeout: float
    ) -> Collection[str]:
        if not (session.fanout.newest and self.unreached):
            return {*await self._flush(session, confirmations, timeout), *self.unreached}
        end = elapsed() + timeout
        async with asyncio.TaskGroup() as group:
            group.create_task(self._until_met(session, timeout))
            missing = await self._flush(session, confirmations, timeout)
        if self.unreached:
            return {*missing, *self.unreached}
        # The members that are met now have yet to get what was published while they were not.
        return await self._flush(session, confirmations, max(0.0, end - elapsed()))

    async def _flush(
        self, session: Session, confirmations: Confirmations, timeout: float
    ) -> set[str]:
        session.beat()  # a peer that hears of a higher number is to ask before it confirms anything
        # What is refused has no stream, and no mark names it.
        return {*await confirmations.flush(timeout), *session.answers.lacking()}

    async def show(self, timeout: float) -> Collection[str]:
        """Wait until the observers have everything; return the names of the others. For tests."""
        return () if self._confirmations is None else await self._confirmations.show(timeout)

    async def _until_met(self, session: Session, timeout: float) -> None:
        """Wait until every address has answered, for `timeout` seconds at most."""
        end = elapsed() + timeout
        while self.unreached and (left := end - elapsed()) > 0:
            # Discovery does not tell when an address has answered: it is asked.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK)):
                    await session.links.changed.wait()

    # Publishing that waits for its readers.

    def listeners(self, route: Route, to: str = "") -> Collection[Source] | None:
        """The peers that have subscribed to the type of `route` by name; None if not all of them
        are known. With `to`: the one of that name, if it takes the key as well.
        """
        return () if self.session is None else self.session.links.listeners(route, to)

    def standings(self, type: str) -> Mapping[Source, Standing]:
        """Where each peer has confirmed events of `type`, if any listens to them."""
        return {} if self._readers is None else self._readers.standings(type)

    def mark(self, type: str, upto: int, waiting: Collection[str] | None) -> None:
        """Ask the peers to confirm the events of `type` up to a seq."""
        if self._readers is not None and not self._is_closing:
            self._readers.ask(type, upto, waiting)

    def held(self) -> Iterable[tuple[CatchUp, Collection[str]]]:
        """Catchups that have not passed what another bus waits for, and the buses that wait."""
        return () if self.session is None else self.session.interest.held()

    # Going.

    async def close(self, timeout: float) -> Collection[str]:
        """Say bye behind the data and end all links. Names no peer: `flush` has done so."""
        try:
            try:
                self._say_bye()
            except BaseException:  # a Ctrl-C; peers are to hear of the end all the same
                self._say_bye()
                raise
        finally:
            try:
                await self._leave(min(timeout, GLANCE) if self._is_for_observers else timeout)
            finally:
                self._confirmations = None
        return ()

    @property
    def _is_for_observers(self) -> bool:
        """True if all but observers have everything: what is still to leave is for these, of which
        one may have been stopped a moment ago.
        """
        return self.session is not None and self.session.links.is_observed and not self._missing

    def _say_bye(self) -> None:
        self._is_closing = True
        for timer in self._timers.values():
            timer.cancel()
        for task in self._probes:
            task.cancel()
        if self.session is not None and self._confirmations is not None:
            self.session.say_bye()

    async def _leave(self, timeout: float) -> None:
        try:
            await self.discovery.leave()
        finally:
            await self.network.close(timeout)

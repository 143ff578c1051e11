"""Every exception of the package.

    BusError
    ├── AlreadyReplied    reply() to a request that has its reply
    ├── BusClosed         the bus is not open (not started, closing or closed)
    ├── EncodeError       the event cannot travel as it is            (also a ValueError)
    ├── PayloadError      the data of an event is not what was asked for (also a ValueError)
    ├── QueueFull         publish_nowait() met a full "block" inbox, or a reader it must not outrun
    ├── JournalError      what a journal refuses; the base of those below
    │   ├── CommitFailed      these events are not in the file; the next commit may succeed
    │   ├── JournalCorrupt    what is in the file is not what was written
    │   ├── JournalFailed     nothing more can be written before it is opened again
    │   ├── JournalInUse      another process, or object, writes to it
    │   ├── StateCorrupt      the file of a keeper is not what was written
    │   ├── JournalRemoved    `keep=` has removed what was asked for
    │   └── NotRecorded       the event that is to be explained is in none of the files
    ├── KeyringError      what a keyring refuses: its files, or a name that has no key in it
    ├── NameInUse         another bus of this name is on the network
    ├── PeerTimeout       wait_for_peer() waited in vain             (also a TimeoutError)
    ├── NoSubscribers     no subscription, or none of the bus that it is for, names the type of a
    │                     request()
    ├── RequestInterrupted  request() was published, and the bus that could answer is gone
    ├── RequestTimeout    request() was published but not answered    (also a TimeoutError)
    ├── WrongLoop         called from another event loop, thread or process
    ├── Deadlock          in virtual time: nothing can ever happen again
    └── LeavesProcess     in virtual time: a call that would leave the process

Facts are in attributes, the way out is in the text. This module knows nothing else of the package.
"""

from collections.abc import Sequence

__all__ = [
    "AlreadyReplied",
    "BusClosed",
    "BusError",
    "CommitFailed",
    "Deadlock",
    "EncodeError",
    "JournalCorrupt",
    "JournalError",
    "JournalFailed",
    "JournalInUse",
    "JournalRemoved",
    "JournalRestored",
    "KeyringError",
    "LeavesProcess",
    "NameInUse",
    "NoSubscribers",
    "NotPermitted",
    "NotRecorded",
    "PayloadError",
    "PeerTimeout",
    "QueueFull",
    "RequestInterrupted",
    "RequestTimeout",
    "StateCorrupt",
    "WrongLoop",
]


MOST_NAMES = 8
"""In an error text."""
TEXT = 160
"""Characters of a path or an event in an error text: its beginning and its end are shown."""


def _short(text: str) -> str:
    """`text`, without its middle if it is long."""
    return text if len(text) <= TEXT else f"{text[: TEXT // 2]} ... {text[-TEXT // 2 :]}"


class BusError(Exception):
    """The base of what this package raises, apart from TypeError and ValueError for arguments."""


class BusClosed(BusError):
    """The bus is not open: `start` was not awaited yet, or `close` has begun. Nothing was
    published.
    """


class AlreadyReplied(BusError):
    """`reply` published nothing, because this bus has replied to the event with the id `request`
    before. `reply` is the id of that reply: "" while it is under way, and if `most` others have
    been given since, so that it is not known any more.
    """

    def __init__(self, request: str, reply: str, most: int = 0) -> None:
        super().__init__(request, reply, most)
        self.request = request
        self.reply = reply
        self.most = most

    def __str__(self) -> str:
        if self.most:
            text = (
                f"whether {self.request} was replied to is not known any more, because {self.most}"
                " requests that came after it or with it were"
            )
        elif self.reply:
            text = f"{self.request} was replied to before, with {self.reply}"
        else:
            text = f"{self.request} is being replied to by another call"
        return (
            f"{text}; nothing was published. A request has one reply: publish what follows, such as"
            " a FILL behind an ACK, as Event(..., cause=request.id)"
        )


class EncodeError(BusError, ValueError):
    """An event was refused before it got a seq, because a value in it has no exact JSON form.

    `path` is the value's place as a Python expression (`data['legs'][2].price`); `reason` is why.
    The text leaves out the middle of a long path.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{_short(self.path)}: {self.reason}"


class PayloadError(BusError, ValueError):
    """The data of an event is not of the type that the consumer asked for.

    `event` is the id of the event, `type` its type. `path` is the place in its data as a Python
    expression (`data.legs[2].price`), `reason` is why.
    """

    def __init__(self, type: str, event: str, path: str, reason: str) -> None:
        super().__init__(type, event, path, reason)
        self.type = type
        self.event = event
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{_short(self.path)}: {_short(self.reason)} ({self.type} {self.event})"

    def __repr__(self) -> str:
        return f"PayloadError({str(self)!r})"


class QueueFull(BusError):
    """`publish_nowait` published nothing, because the "block" inbox of `subscription` is full. Its
    bound is `maxsize` events, of which 256 are reserved while it catches up with another bus.
    With a journal it is also raised while `maxsize` events, or too many bytes, wait for their
    commit; `subscription` is "" then. With `pace=True` it is also raised when history is full of
    events that a reader has not confirmed; `subscription` is "" then, and `maxsize` is the bound
    that `Limits` has as `limit`.
    """

    def __init__(self, subscription: str, maxsize: int, limit: str = "") -> None:
        super().__init__(subscription, maxsize, limit)
        self.subscription = subscription
        self.maxsize = maxsize
        self.limit = limit
        """`history_events`, `history_bytes` or `history_total_bytes`; else ""."""

    def __str__(self) -> str:
        if not (self.subscription or self.limit):
            return (
                f"{self.maxsize} events wait for their commit to the journal, or too many bytes:"
                " nothing was published. `await bus.publish(event)` waits for that"
            )
        if not self.subscription:
            return (
                "history is full of events that a reader has not confirmed (pace=True,"
                f" Limits.{self.limit}={self.maxsize}): nothing was published."
                " `await bus.publish(event)` waits for that, or raise that limit"
            )
        return (
            f"the inbox of {self.subscription} is full (maxsize={self.maxsize}), its policy is"
            " 'block': nothing was published. `await bus.publish(event)` waits for room, or give"
            " that subscription another overflow policy"
        )


class JournalError(BusError):
    """A journal was asked for something that it cannot do. The text says what."""


class CommitFailed(JournalError):
    """A commit to the journal at `path` failed as a whole, for example because the disk is full:
    none of its events is in the file. The next commit tries again.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: the commit failed and its events are not in the file: {self.reason}"


class JournalFailed(JournalError):
    """The journal at `path` accepts nothing more until it is opened again, because an error of the
    disk leaves unknown what is on it. The events of the failed commit may be in the file or not.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.path}: writing failed ({self.reason}), so it is unknown what is on the disk."
            " Nothing more is written; open the journal again, which verifies it"
        )


class JournalCorrupt(JournalError):
    """The journal at `path` is not what was written, from `offset` on. The `valid` events before
    that are whole and can be read. Nothing was changed or deleted.
    """

    def __init__(self, path: str, offset: int, valid: int, reason: str) -> None:
        super().__init__(path, offset, valid, reason)
        self.path = path
        self.offset = offset
        self.valid = valid
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.path} is damaged from offset {self.offset} on: {self.reason}. The {self.valid}"
            " events before that are whole: read them with aiobus.Journal(path).read(). To go on,"
            " move the file away together with those that begin with its name, and begin a new one"
        )


class StateCorrupt(JournalError):
    """The file of a keeper at `path` is not what was written. Nothing was changed or deleted."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.path} is damaged: {self.reason}. The keeper does not start, because it could"
            " tell a state that is not true. Put a copy back; or move the file away together with"
            " those that begin with its name: a new one begins with what the publishers have that"
            " are there, and a HALT of one that is gone is lost"
        )


class JournalInUse(JournalError):
    """The journal at `path` is written by `holder` already. Reading it is possible."""

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(path, holder)
        self.path = path
        self.holder = holder

    def __str__(self) -> str:
        return (
            f"{self.path} is written by {self.holder or 'another process'} already; end that, or"
            " give this one another file"
        )


class JournalRemoved(JournalError):
    """What was asked of the journal at `path` was removed by `keep=`: the events before offset
    `first`.
    """

    def __init__(self, path: str, first: int) -> None:
        super().__init__(path, first)
        self.path = path
        self.first = first

    def __str__(self) -> str:
        return (
            f"{self.path}: the events before offset {self.first} were removed by keep=; read from"
            f" start_offset={self.first} on, or keep more"
        )


class NotRecorded(JournalError):
    """The event that is to be explained is in none of the files, and `reason` says why, as far as
    can be told. `nearest` has the ids of the events of the wanted type and key that are nearest to
    the wanted time, the nearest first; it is empty if an id was wanted.
    """

    def __init__(self, reason: str, nearest: list[str]) -> None:
        super().__init__(reason, nearest)
        self.reason = reason
        self.nearest = nearest

    def __str__(self) -> str:
        return self.reason


class KeyringError(BusError):
    """The keys of a desk cannot be used as they are: a file of the keyring is missing, damaged or
    readable by others, or a bus has no key in it, or a bus that other hosts can reach has no
    keyring. The text names the file and the way out, and never has a secret.
    """


class NameInUse(BusError):
    """Another bus named `name` is on `url` already; this one has not joined, or leaves. Raised on
    `ipc://` and `tcp://`.
    """

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name, url)
        self.name = name
        self.url = url
        self.is_here = False
        """True if the other bus is an object of this process."""

    def __str__(self) -> str:
        if self.is_here:
            return (
                f"this very process has a bus named {self.name!r} on {self.url}: use that object,"
                " close it first, or give this one another name= if it is another bot"
            )
        state = ""
        if self.url.startswith(("ipc://", "tcp://")):
            state = f". It may be frozen or stopped (Ctrl-Z), see `aiobus doctor {self.url}`"
        return (
            f"a bus named {self.name!r} is on {self.url} already: end that one first{state}. Give"
            " another name= only to another bot: two that take the same orders both execute them"
        )


class NotPermitted(BusError):
    """The rules of a desk with keys do not let the bus `name` do that: `what` is "publish" or
    "subscribe to", `types` the types. Nothing was published or subscribed.
    """

    def __init__(self, name: str, what: str, types: str) -> None:
        super().__init__(name, what, types)
        self.name = name
        self.what = what
        self.types = types

    def __str__(self) -> str:
        return (
            f"{self.name} may not {self.what} {self.types}, by the rules of this desk: others would"
            " refuse it. The rules stand in desk.members of each host"
        )


class JournalRestored(BusError):
    """The journal of the bus `name` lacks what its peers have heard of it: one of them knows `seq`,
    and `last` is the last in the file when the bus started. It was restored from a backup, with its
    mark, or it is the newer file and a backup was at work in the meantime. Peers would drop new
    events with these numbers as repeats, so the bus ends.
    """

    def __init__(self, name: str, seq: int, last: int) -> None:
        super().__init__(name, seq, last)
        self.name = name
        self.seq = seq
        self.last = last

    def __str__(self) -> str:
        return (
            f"a peer has heard of {self.name!r} up to seq {self.seq}, and its journal had none"
            f" above {self.last} when it started: the file is an older copy, or another copy of it"
            " was at work since. If there is a newer file, put it back. If this is the newer file,"
            " start once with new_epoch=True, and peers take what comes for that of a new source"
        )


class NoSubscribers(BusError):
    """`request` published nothing, because no subscription names the `type` and `key` of the event.
    A subscription to `"*"` does not count, because it is a monitor's. `to` is the bus that the
    request was for, "" for any; `linked` has the names of the buses that are there if it is not,
    and is None if it is.
    """

    def __init__(
        self, type: str, key: str, to: str = "", linked: Sequence[str] | None = None
    ) -> None:
        given = () if linked is None else (tuple(linked),)
        super().__init__(type, key, *((to, *given) if to else ()))
        self.type = type
        self.key = key
        self.to = to
        self.linked = None if linked is None else tuple(linked)

    def __str__(self) -> str:
        if self.linked is not None:
            some = ", ".join(self.linked[:MOST_NAMES]) or "none"
            more = f" and {len(left)} more" if (left := self.linked[MOST_NAMES:]) else ""
            return (
                f"no bus named {self.to!r} is linked (linked: {some}{more}), so nothing was"
                " published. Wait for its `aiobus.peer_joined`, or correct to="
            )
        who = f"subscription of {self.to}" if self.to else "subscription"
        first = f"Let {self.to} subscribe" if self.to else "Start the bus that answers it"
        return (
            f"no {who} names {self.type} with key {self.key!r} ('*' does not count);"
            f" nothing was published. {first} first, or `publish` what needs no answer"
        )


class RequestInterrupted(BusError):
    """`event` was published, and each bus that could answer it has left or started again since;
    `name` was the last. It may have been acted on before. A late reply is delivered as an ordinary
    event.
    """

    def __init__(self, event: object, name: str) -> None:
        super().__init__(event, name)
        self.event = event
        self.name = name

    def __str__(self) -> str:
        return (
            f"{self.name} has left or started again before it replied to {_short(str(self.event))};"
            " it was published, so it may have been acted on: ask what became of it before you"
            " send it again"
        )


class RequestTimeout(BusError, TimeoutError):
    """`event` was published, and no reply came within `timeout` seconds. A late reply is delivered
    as an ordinary event. `waited` has the names of the subscriptions that alone could answer, if
    none of them could go on before the handler in which the request was made: it waited for itself.
    `silent` has the names of the buses that alone could answer, if none of them had sent anything
    for 3 s.
    """

    def __init__(
        self,
        event: object,
        timeout: float,
        waited: Sequence[str] = (),
        silent: Sequence[str] = (),
    ) -> None:
        super().__init__(event, timeout)
        more = (tuple(waited), tuple(silent)) if silent else (tuple(waited),) if waited else ()
        self.args = (event, timeout, *more)  # an OSError takes a third argument for a file
        self.event = event
        self.timeout = timeout
        self.waited = tuple(waited)
        self.silent = tuple(silent)

    def __str__(self) -> str:
        text = f"no reply within {self.timeout:g} s to {_short(str(self.event))}; it was published,"
        if self.waited:
            names = ", ".join(self.waited[:MOST_NAMES])
            return (
                f"{text} and waits for this very handler: {names} alone could answer, and cannot"
                " take it before the handler in which the request was made has returned. Request in"
                " a task that the handler does not await, answer in another subscription, or give"
                " that one more concurrency="
            )
        if self.silent:
            names = ", ".join(self.silent[:MOST_NAMES])
            return (
                f"{text} and what alone could answer sends nothing: {names}, which may be frozen or"
                " stopped. If that goes on, it may still act on it: ask what became of it then"
            )
        return (
            f"{text} so it may still be acted on. If its handler has failed, the log of"
            " that bus and an `aiobus.error` there say so. A reply is an event of the reply types"
            " that is published by the handler of this one, by `reply`, or with its id as `cause`"
        )


class PeerTimeout(BusError, TimeoutError):
    """`wait_for_peer` waited for the bus `name` for `timeout` seconds. `wanted` is the query that
    it should have subscribed to, "" for none. `reason` says what was missing. `there` has what each
    peer subscribes to, by name.
    """

    def __init__(
        self, name: str, wanted: str, timeout: float, reason: str, there: dict[str, list[str]]
    ) -> None:
        super().__init__(name)
        self.args = name, wanted, timeout, reason, there  # an OSError keeps two of them
        self.name = name
        self.wanted = wanted
        self.timeout = timeout
        self.reason = reason
        self.there = there

    def __str__(self) -> str:
        return f"{self.reason}, after {self.timeout:g} s"


class WrongLoop(BusError):
    """The bus was used outside the thread, event loop or process that started it. The call had no
    effect.
    """


class Deadlock(BusError):
    """On a VirtualLoop, no callback is ready, and no timer is set or the clock was stopped, so no
    task can ever go on. `time` is that of the loop, in seconds. `waiting` has one line for each
    waiting task: its name, and where it waits, with file and line, innermost first.
    """

    def __init__(self, time: float, waiting: list[str], reason: str = "no timer is set") -> None:
        super().__init__(time, waiting, reason)
        self.time = time
        self.waiting = waiting
        self.reason = reason

    def __str__(self) -> str:
        tasks = "".join(f"\n  {line}" for line in self.waiting) or " none"
        return (
            f"nothing can ever happen again after {self.time:g} s of virtual time, because"
            f" {self.reason}; tasks that wait:{tasks}"
        )


class LeavesProcess(BusError):
    """Code in virtual time made a `call` that would leave the process, or its only thread. The call
    was not made, and the run ends with this error. `caller` is what `run_virtual(allow=)` would
    have to name; "" if that is of no use, because a VirtualLoop has nothing that does the call, or
    because it starts a bus on ipc or tcp or with a journal, in any thread of the process, while
    what `replayed` says is replayed.
    """

    def __init__(self, call: str, caller: str, replayed: str = "") -> None:
        super().__init__(call, caller, replayed)
        self.call = call
        self.caller = caller
        self.replayed = replayed

    def __str__(self) -> str:
        call = _short(self.call)
        if self.replayed:
            return (
                f"{call} was refused while {self.replayed} is replayed in this process: what is"
                " replayed could reach a desk by it. Close the replay, or use another process"
            )
        if not self.caller:
            return (
                f"{call} was refused: a VirtualLoop has no sockets, pipes, processes or threads."
                " Buses that are to talk to each other in virtual time need a MemoryNetwork"
            )
        return (
            f"{call} in {self.caller} was refused: nothing leaves the process in virtual time."
            " Buses that are to talk to each other there need a MemoryNetwork. To let this caller"
            f" through, name it: run_virtual(..., allow=({self.caller!r},))"
        )

"""What `aiobus doctor` looks at: versions, limits, meeting places, buses and clocks.

Owns what is well, and what to do if it is not. Must not know how a finding is printed.
"""

import importlib.metadata
import os
import platform
import resource
import socket
import sqlite3
import stat
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from itertools import combinations, product
from typing import Any, Literal, NamedTuple

import orjson

from aiobus import clock
from aiobus.discovery import OBSERVES, is_observer
from aiobus.discovery.directory import Directory
from aiobus.discovery.unix_socket import PathState, probe
from aiobus.event import Event, EventType
from aiobus.limits import Limits
from aiobus.presence import Peer

__all__ = [
    "Clocks", "Finding", "differing", "directories", "doubles", "inhabited", "limits", "lists",
    "members", "silences", "skews", "unanswered", "unlinked", "unseen", "versions",
]  # fmt: skip

DESCRIPTORS = 1_024
"""As many as 250 peers and some files need."""
SPARE_SHARE = 0.1
SHORT = 64
"""Free descriptors, or a tenth of the limit: with fewer, a bus soon links with no new peer."""
STALE = 3.0
SKEW = 0.5
"""Seconds between the time of an event and its arrival that are no delay of one machine."""
SQLITE = (3, 51, 3)


class Finding(NamedTuple):
    """One thing that was looked at."""

    status: Literal["ok", "note", "todo"]
    subject: str
    text: str
    way: str = ""
    """What to do."""


def versions() -> list[Finding]:
    """Of Python, and of what the package uses."""
    import zmq

    found = [
        Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}"),
        _aiobus(),
        Finding("ok", "pyzmq", f"{zmq.__version__}, libzmq {zmq.zmq_version()}"),
        Finding("ok", "orjson", orjson.__version__),
    ]
    try:
        found.append(Finding("ok", "uvloop", importlib.metadata.version("uvloop")))
    except importlib.metadata.PackageNotFoundError:
        text = "is not installed: bots run on asyncio's own loop, which is slower"
        found.append(Finding("note", "uvloop", text, "pip install 'aiobus-zmq[uvloop]'"))
    if sqlite3.sqlite_version_info < SQLITE:
        text = f"{sqlite3.sqlite_version}: before 3.51.3, two connections that checkpoint at once"
        found.append(
            Finding(
                "note",
                "sqlite",
                f"{text} can corrupt a file. aiobus checkpoints from one alone",
                "open journals with other tools read-only (mode=ro)",
            )
        )
    else:
        found.append(Finding("ok", "sqlite", sqlite3.sqlite_version))
    return found


def _aiobus() -> Finding:
    try:
        return Finding("ok", "aiobus", importlib.metadata.version("aiobus-zmq"))
    except importlib.metadata.PackageNotFoundError:
        place = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        text = f"is not installed, and imported from {place}"
        return Finding("note", "aiobus", text, "pip install aiobus-zmq, or pip install -e . there")


def limits() -> list[Finding]:
    """Of this process, which are those that a bot started from the same shell has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = []
    told = f"a process may open {_count(soft)} files (hard limit {_count(hard)})"
    if 0 <= hard < DESCRIPTORS:  # a bus raises its soft limit itself
        way = "raise it: ulimit -n, LimitNOFILE= of systemd, or --ulimit nofile= of Docker"
        found.append(Finding("todo", "descriptors", f"{told}; a bus has two for each peer", way))
    else:
        found.append(Finding("ok", "descriptors", told))
    core, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if core != resource.RLIM_INFINITY:
        text = f"a file may have {core:,} bytes: a journal that reaches them fails"
        found.append(Finding("todo", "file size", text, "ulimit -f unlimited"))
    space = Limits().history_total_bytes
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY and most < 8 * space:
        text = f"a process may have {most:,} bytes; the history of a bus takes up to {space:,}"
        way = "ulimit -v unlimited, or AsyncEventBus(limits=Limits(history_total_bytes=...))"
        found.append(Finding("todo", "memory", text, way))
    else:
        text = f"the history of a bus takes up to {space // 2**20} MiB (Limits)"
        found.append(Finding("ok", "memory", text))
    return found


def _count(limit: int) -> str:
    return "any number of" if limit == resource.RLIM_INFINITY else f"{limit:,}"


def directories() -> list[Finding]:
    """Where the `ipc://` desks of this user meet, and which there are."""
    place = os.path.dirname(Directory("desk").path)
    try:
        info = os.lstat(place)
    except FileNotFoundError:
        return [Finding("ok", place, "no desk is there: the first bus on ipc:// makes it")]
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        text = "is no directory for this user alone (mode 0700), so no bus on ipc:// starts"
        way = f"look who made it (ls -ld {place}), and remove it"
        return [Finding("todo", place, text, way)]
    found = [Finding("ok", place, "is the place where ipc:// desks meet, for this user alone")]
    for name in sorted(os.listdir(place)):
        with suppress(OSError):
            states = _states(os.path.join(place, name))
            alive = [each for each, state in states.items() if state is PathState.ALIVE]
            told = f"{', '.join(alive) or 'nobody'} {'are' if len(alive) > 1 else 'is'} there"
            found.append(Finding("ok", f"ipc://{name}", told))
            found += _stale(f"ipc://{name}", os.path.join(place, name), states)
    return found


def inhabited() -> list[str]:
    """The named `ipc://` desks of this user where a bus listens."""
    place = os.path.dirname(Directory("desk").path)
    found = []
    with suppress(OSError):
        for name in sorted(os.listdir(place)):
            with suppress(OSError):
                if PathState.ALIVE in _states(os.path.join(place, name)).values():
                    found.append(f"ipc://{name}")
    return found


def _states(directory: str) -> dict[str, PathState]:
    """What each socket of a desk is, by the name of its bus; that of an observer has a + behind."""
    found = {}
    for name in sorted(os.listdir(directory)):
        bus, suffix, mark = name.rpartition(".sock")
        if suffix and mark in ("", OBSERVES):
            found[bus + mark] = probe(os.path.join(directory, name))
    return found


def _stale(url: str, directory: str, states: dict[str, PathState]) -> list[Finding]:
    found = []
    if dead := [name for name, state in states.items() if state is PathState.DEAD]:
        text = f"{', '.join(dead)} ended without closing, and left {len(dead)} socket files"
        way = f"nothing: the next bus that joins removes them. Look why it was killed ({directory})"
        found.append(Finding("note", url, text, way))
    if foreign := [name for name, state in states.items() if state is PathState.FOREIGN]:
        text = f"{', '.join(foreign)}: a file that is no socket of this user is in the way"
        way = f"remove it from {directory}, else no bus of that name starts"
        found.append(Finding("todo", url, text, way))
    return found


def members(url: str) -> list[Finding]:
    """The files of an `ipc://` desk, and the processes behind them."""
    scheme, _, address = url.partition("://")
    if scheme != "ipc":
        return [Finding("ok", url, "is where the buses of this desk meet")]
    directory = Directory(address).path
    if not os.path.isdir(directory):
        text = f"{directory} does not exist: no bus has been there, or the last one has left"
        return [Finding("note", url, text, "start a bot there, or look for a typing error")]
    states = _states(directory)
    found = [Finding("ok", url, f"buses meet in {directory}")]
    if not address.startswith("/"):
        found = []  # it is among the directories
    else:
        found += _stale(url, directory, states)
    for name, state in states.items():
        if state is PathState.ALIVE and not is_observer(name):
            found.append(_process(name, os.path.join(directory, f"{name}.sock")))
    return found


def unanswered(names: Iterable[str], *, with_keys: bool) -> list[Finding]:
    """Buses that are known to be there, and have not answered."""
    way = "it is stopped, blocks its event loop, or is of another version of aiobus"
    if with_keys:
        way += "; or it is revoked, or cannot read its keyring: see its log"
    return [Finding("todo", name, "listens, and does not answer", way) for name in names]


def unlinked(reasons: Mapping[str, str]) -> list[Finding]:
    """Buses that are not linked because of keys, and why."""
    found = []
    for name, reason in reasons.items():
        text, _, way = reason.partition(": ")
        found.append(Finding("todo", name, text, way))
    return found


def _process(name: str, path: str) -> Finding:
    """The process of a bus and its descriptors, where the system tells."""
    pid = _listener(path)
    if not pid:
        return Finding("ok", name, "listens")
    try:
        used = len(os.listdir(f"/proc/{pid}/fd"))
        with open(f"/proc/{pid}/limits") as file:
            line = next(line for line in file if line.startswith("Max open files"))
        with open(f"/proc/{pid}/status") as file:
            state = next(line.split()[1] for line in file if line.startswith("State:"))
    except (OSError, StopIteration):
        return Finding("ok", name, f"is process {pid}")
    limit = line.split()[3]
    text = f"is process {pid}, with {used:,} of {limit} files open"
    if state == "T":
        return Finding(
            "todo", name, f"{text}, and is stopped (SIGSTOP, Ctrl-Z)", f"kill -CONT {pid}"
        )
    if limit.isdigit() and int(limit) - used < max(SHORT, SPARE_SHARE * int(limit)):
        way = f"close files in it, or raise its limit: prlimit --pid {pid} --nofile=8192"
        return Finding("todo", name, text, way)
    return Finding("ok", name, text)


def _listener(path: str) -> int:
    """The process that listens at a path; 0 if it is not known."""
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(0.2)
        sock.connect(path)
        told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", told)[0])
    return 0


def silences(others: Iterable[Peer]) -> list[Finding]:
    """Whether each bus sends its heartbeats."""
    found = []
    for each in others:
        what = " ".join(each.subscribed) or "nothing"
        if each.silent >= STALE:
            way = "it is stopped or blocks its event loop: py-spy dump --pid PID shows where"
            found.append(Finding("todo", each.name, f"is silent for {each.silent:.1f} s", way))
        else:
            found.append(Finding("ok", each.name, f"sends heartbeats, and subscribes to {what}"))
    return found


def skews(others: Iterable[Peer]) -> list[Finding]:
    """Whether the clock of each bus is that of this machine, as far as it is known."""
    found = []
    for each in others:
        if each.skew is None or each.skew_error is None:
            continue
        where = "ahead of" if each.skew > 0 else "behind"
        text = f"its clock is {abs(each.skew) * 1e3:,.1f} ms {where} this machine's"
        text += f", right to {each.skew_error * 1e3:,.1f} ms"
        if each.is_skewed:
            way = (
                "let NTP set the clocks of both hosts (chrony, systemd-timesyncd); `chronyc"
                " tracking` shows which is wrong. Until then max_age=, since= and each time that"
                " is compared between the two are off by as much"
            )
            found.append(Finding("todo", each.name, text, way))
        else:
            found.append(Finding("ok", each.name, text))
    return found


def differing(peer: Peer) -> str:
    """How its list of members differs from that of this bus."""
    if peer.member_list == "other":
        return "another list of members with the same number"
    article = "an" if peer.member_list == "older" else "a"
    return f"{article} {peer.member_list} list of members than this host"


def lists(others: Iterable[Peer]) -> list[Finding]:
    """Which buses have another list of the desk's members than this host."""
    ways = {
        "older": "copy desk.members from this host to the host of that bus",
        "newer": "copy desk.members from the host of that bus to this one",
        "other": "two persons have changed it: make a next list that has the changes of both",
    }
    return [
        Finding("todo", each.name, f"has {differing(each)}", ways[each.member_list])
        for each in others
        if each.member_list
    ]


def doubles(others: Iterable[Peer]) -> list[Finding]:
    """Orders that several buses subscribe to by name: each of them may execute them."""
    found = []
    for type in (EventType.ORDER, EventType.CANCEL):
        rules = {
            each.name: [rule for rule in map(partial(_rule, type), each.subscribed) if rule]
            for each in others
        }
        names = {
            name
            for a, b in combinations(rules, 2)
            if any(_meet(*pair) for pair in product(rules[a], rules[b]))
            for name in (a, b)
        }
        if names:
            text = f"{', '.join(sorted(names))} subscribe to the same {type} by name"
            way = (
                f"if two of them are gateways, each {type} is executed twice: end one of them, or"
                " give them different keys. A bot that only checks or shows orders does no harm"
            )
            found.append(Finding("note", type, text, way))
    return found


def _rule(type: str, pattern: str) -> str:
    """The keys of `type` that a pattern has, with a `*` behind a prefix; "" for another type."""
    name, slash, rule = pattern.partition("/")
    if name != type:
        return ""
    return f"/{rule}" if slash else "/*"


def _meet(one: str, other: str) -> bool:
    """True if both rules may match one key. `/**` stands for keys that were not told."""
    a, b = one.rstrip("*"), other.rstrip("*")
    return (a.startswith(b) if b != other else a == b) or (a != one and b.startswith(a))


def unseen(url: str) -> Finding:
    """What no other process can tell of the bots of a desk."""
    text = (
        "not seen from here: whether handlers keep up, and whether a subscription has lost events"
    )
    way = "look into the log of each bot: fell behind, lost events; or bus.stats(): behind, gaps"
    return Finding("ok", url, text, way)


class Clocks:
    """How far the times of events are from this machine's clock as they arrive, by their source.
    Heartbeats have no time, so a source that publishes nothing is not compared.
    """

    def __init__(self) -> None:
        self._least: dict[str, float] = {}

    def hear(self, event: Event[Any]) -> None:
        """An event arrives."""
        late = clock.time() - event.timestamp
        self._least[event.source] = min(late, self._least.get(event.source, late))

    def findings(self, seconds: float) -> list[Finding]:
        """Of each source that has published."""
        if not self._least:
            text = f"nothing was published in {seconds:g} s, so no clock was compared"
            return [Finding("ok", "clocks", text)]
        found = []
        for source, late in sorted(self._least.items()):
            if abs(late) < SKEW:
                text = f"its events are {abs(late) * 1e3:.1f} ms from this clock"
                found.append(Finding("ok", source, text))
                continue
            where = "behind" if late > 0 else "ahead of"
            found.append(
                Finding(
                    "todo",
                    source,
                    f"the times of its events are {abs(late):,.1f} s {where} this machine's clock",
                    "if it sets timestamp= to the time of an exchange, put that into data: max_age="
                    " and since= count from the timestamp. Else it is far behind, or its clock is"
                    " wrong",
                )
            )
        return found

"""A bus that looks at a desk: an observer, for which no bot waits. And who is there.

Owns how the commands join a desk, and as which member if it has keys. Must not know what they do
there.
"""

from aiobus import clock
from aiobus.bus import AsyncEventBus, refusing, unmet
from aiobus.cli.arguments import WrongArgument, checked_url
from aiobus.discovery.directory import Directory
from aiobus.discovery.roster import places_in
from aiobus.errors import KeyringError
from aiobus.keyring import Keyring
from aiobus.presence import Peer
from aiobus.url import KEYRING, keyring_of_environment

__all__ = [
    "joining", "keyring_for", "neighbours", "observing", "place_of", "shut_out", "waiting_for",
]  # fmt: skip


def observing(
    url: str, role: str, name: str | None = None, keyring: str | None = None
) -> AsyncEventBus:
    """A bus that looks at the desk at `url`. Raises WrongArgument, KeyringError."""
    return _made(url, role, name, keyring, observer=True)


def joining(
    url: str, role: str, name: str | None = None, keyring: str | None = None
) -> AsyncEventBus:
    """A bus that takes part in the desk at `url`. Raises WrongArgument, KeyringError."""
    return _made(url, role, name, keyring, observer=False)


def keyring_for(url: str, path: str | None) -> Keyring | None:
    """The keys of the desk at `url`: in the directory `path`, or in that of the environment. Raises
    WrongArgument, and KeyringError if they cannot be used.
    """
    is_tcp = url.startswith("tcp://")
    if path is None:
        return keyring_of_environment() if is_tcp else None
    if not is_tcp:
        raise WrongArgument(f"--keyring {path}: {url} has no keys; they are for tcp://host:port")
    return Keyring.load(path)


def _made(
    url: str, role: str, name: str | None, path: str | None, *, observer: bool
) -> AsyncEventBus:
    url = checked_url(url)
    keyring, given = keyring_for(url, path), name
    if name is None:
        made = f"{role}-{clock.token()}"
        name = made if keyring is None else _member(keyring, role, observer=observer)
    try:
        bus = AsyncEventBus(url, name=name, observer=observer, keyring=keyring)
    except ValueError as error:
        raise WrongArgument(str(error)) from None
    if keyring is not None:
        keyring.secret_of(name)  # it says what is wrong, before anything is opened
    elif _is_reached(url):
        # Not as the bus says it: it would have a key made for a name of this one run.
        rule = " --publish ''" if observer else ""
        raise KeyringError(
            f"{url} can be reached by other hosts, so the desk there has keys: give the directory"
            f" of its keyring, by --keyring or in {KEYRING}. If no key of this host is for this"
            f" command, make one there: `aiobus keygen {given or role}{rule}`"
        )
    return bus


def _is_reached(url: str) -> bool:
    """Whether other hosts can reach the desk at `url`, which then has keys."""
    scheme, _, addresses = url.partition("://")
    return scheme == "tcp" and not all(each.is_loopback for each in places_in(addresses))


def _member(keyring: Keyring, role: str, *, observer: bool) -> str:
    """The member as which a command joins that is given no name: one that was made for it, or for
    looking on. Never that of a bot, which could not start while the command has its name.
    """
    members = keyring.members.by_name
    here = [members[name] for name in keyring.names if name in members]
    for each in here:
        if each.name == role or each.name.startswith(f"{role}-"):
            return each.name
    mute = [each.name for each in here if each.rules.publish == frozenset()]
    if observer and len(mute) == 1:
        return mute[0]
    names = ", ".join(each.name for each in here) or "none"
    rule = " --publish ''" if observer else ""
    raise WrongArgument(
        f"{keyring.path}: on a desk with keys the bus of this command is a member: give --name."
        f" Members with a secret here: {names}. A bot cannot start while a command has its name, so"
        f" make one for this command, which is found by itself: `aiobus keygen {role}{rule}"
        f" --keyring {keyring.path}`"
    )


def neighbours(bus: AsyncEventBus) -> list[Peer]:
    """The buses that are linked with `bus`, by name, without observers."""
    return [each for each in bus.peers if not each.observer]


def shut_out(bus: AsyncEventBus, url: str) -> str:
    """That no bus of the desk lets this command in, in a sentence; "" if one does, or may. Why not,
    each bus was said to do in the log, which is shown.
    """
    names = refusing(bus)
    if not names or neighbours(bus) or unmet(bus):
        return ""
    who = f"{', '.join(names)} {'does' if len(names) == 1 else 'do'}"
    return f"{who} not link with {bus.name}, as which this command joins {url}: see above"


def waiting_for(bus: AsyncEventBus, url: str) -> str:
    """What a command says that waits where nobody is linked with it; "" where somebody is."""
    if neighbours(bus):
        return ""
    if reason := shut_out(bus, url):
        return f"! {reason}. Waiting until one does"
    return f"nobody is at {url} ({place_of(url)}) yet: waiting"


def place_of(url: str) -> str:
    """Where the buses of a URL meet, as a person finds it."""
    scheme, _, address = url.partition("://")
    return Directory(address).path if scheme == "ipc" else address

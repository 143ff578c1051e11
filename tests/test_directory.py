"""Meeting in a directory: real files, real locks, real sockets and real processes."""

import asyncio
import errno
import fcntl
import gc
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from aiobus.discovery import Discovery, Member, directory, unix_socket
from aiobus.discovery.directory import AMPLE, DENIED, LOOKS, MAX_PATH, SHORT, Directory
from aiobus.discovery.unix_socket import PAUSE_SECONDS
from aiobus.errors import BusError, NameInUse

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class Bus:
    """One that meets others, and listens as a bus does. The socket's file stays when it dies."""

    def __init__(self, address: object, name: str) -> None:
        self.discovery = Directory(str(address))
        self.name = name
        self.bound: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.told: list[str] = []
        self.found: list[str] = []
        self.lost: list[BusError] = []

    def on_discovered(self, member: Member) -> None:
        self.found.append(member.name)

    def on_problem(self, topic: str, text: str) -> None:
        self.told.append(text)

    def on_name_lost(self, error: BusError) -> None:
        self.lost.append(error)

    def watch(self) -> None:
        self.discovery.watch(self, self.bind)

    def bind(self, endpoint: str) -> str:
        if self.bound:
            self.old = self.socket
            self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(endpoint.removeprefix("ipc://"))
        self.socket.listen()
        self.bound.append(endpoint)
        return endpoint

    async def join(self) -> list[str]:
        return [member.name for member in await self.discovery.join(self.name, self.bind, print)]

    @property
    def path(self) -> Path:
        return Path(self.discovery.path, f"{self.name}.sock")


MakeBus = Callable[..., Bus]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What stands for /tmp; pytest's own would make the paths of sockets too long."""
    with tempfile.TemporaryDirectory(prefix="ab", dir="/tmp") as name:
        monkeypatch.setattr(directory, "TMP", name)
        yield Path(name).resolve()


@pytest.fixture
def a_bus(place: Path) -> Iterator[MakeBus]:
    """`a_bus("name")` on `ipc://desk`, or on another address; not joined yet."""
    made: list[Bus] = []

    def make(name: str = "a", address: object = "desk") -> Bus:
        made.append(Bus(address, name))
        return made[-1]

    yield make
    for each in made:
        each.socket.close()
        if len(each.bound) > 1:
            each.old.close()


@pytest.fixture
def desk(place: Path) -> Path:
    """Where `ipc://desk` is, as another bus has left it."""
    path = place / f"aiobus-{UID}" / "desk"
    path.mkdir(mode=0o700, parents=True)
    path.parent.chmod(0o700)
    return path


@pytest.fixture
async def bus(a_bus: MakeBus, desk: Path) -> Bus:
    """The bus `a`, joined on `ipc://desk`."""
    made = a_bus("a")
    await made.join()
    return made


@pytest.fixture
async def other(a_bus: MakeBus, bus: Bus) -> Bus:
    """The bus `b`, joined after `a`."""
    made = a_bus("b")
    await made.join()
    return made


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process has the directory's lock."""
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def run(code: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def die_having(code: str, *arguments: object) -> None:
    """Run a process until it says that it has done its work, and kill it."""
    with run(code, *arguments) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL


LISTEN = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
sys.stdin.read()
"""

LOCK = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("ready", flush=True)
sys.stdin.read()
"""


# The address.


def test_it_is_a_discovery(place: Path) -> None:
    discovery: Discovery = Directory("desk")
    assert not discovery.unreached


UID = os.geteuid()


def test_a_name_is_a_directory_of_this_user_in_tmp() -> None:
    assert Directory("desk").path == f"{Path('/tmp').resolve()}/aiobus-{UID}/desk"


@pytest.mark.parametrize("is_logged_in", [False, True])
@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR", "HOME", "TEMP"])
def test_no_environment_and_no_login_changes_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, is_logged_in: bool
) -> None:
    """Or two processes of one user would not meet."""
    stat_, usual = os.stat, f"/run/user/{UID}"

    def as_if(path: Any, *rest: Any, **keywords: Any) -> os.stat_result:
        if path != usual:
            return stat_(path, *rest, **keywords)
        if is_logged_in:
            return stat_(tmp_path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "stat", as_if)
    expected = Directory("desk").path
    monkeypatch.setenv(variable, str(tmp_path))
    assert Directory("desk").path == expected == f"{Path('/tmp').resolve()}/aiobus-{UID}/desk"


def test_an_absolute_path_is_the_directory_itself(place: Path) -> None:
    assert Directory(f"{place}/some/where").path == f"{place}/some/where"


def test_two_spellings_of_a_path_are_one_directory(place: Path) -> None:
    (place / "link").symlink_to(place)
    paths = {Directory(f"{place}{rest}").path for rest in ("/x", "//x/", "/link/x", "/link/./x")}
    assert paths == {f"{place}/x"}


@pytest.mark.parametrize(
    "address",
    [
        *("", ".", "..", "@abstract", "*", "some/where", "./desk", "a b", "x" * 65, "désk"),
        *("/", "//", "/tmp/..", "/tmp/.", "/tmp/a\0b", "/tmp/a\nb", "/tmp/\udcff"),
    ],
)
def test_any_other_address_is_refused_with_what_is_needed(address: str) -> None:
    with pytest.raises(ValueError, match=r"'ipc://desk', a name of 1-64 .* is needed") as caught:
        Directory(address)
    assert repr(f"ipc://{address}") in str(caught.value)


@pytest.mark.parametrize("address", ["a", "A-Z_0.9", "...", "x" * 64])
def test_a_name_of_64_letters_digits_dots_and_dashes_will_do(address: str) -> None:
    assert Directory(address).url == f"ipc://{address}"


def test_making_one_makes_nothing_on_disk(place: Path) -> None:
    Directory("desk")
    Directory(f"{place}/some/where")
    assert os.listdir(place) == []


# Joining.


async def test_who_joins_binds_a_socket_under_its_name(a_bus: MakeBus, place: Path) -> None:
    bus = a_bus("strategy-1")
    assert await bus.join() == []
    assert bus.bound == [f"ipc://{place}/aiobus-{UID}/desk/strategy-1.sock"]


async def test_who_joins_learns_who_is_there_and_where(a_bus: MakeBus, desk: Path) -> None:
    for name in ("c", "a"):
        await a_bus(name).join()
    last = a_bus("b")
    assert await last.discovery.join("b", last.bind, print) == [
        Member("a", f"ipc://{desk}/a.sock"),
        Member("c", f"ipc://{desk}/c.sock"),
    ]


async def test_what_is_made_is_for_this_user_alone(a_bus: MakeBus, place: Path) -> None:
    await a_bus("a").join()
    await a_bus("a", place / "some" / "where").join()
    made = [place / path for path in (f"aiobus-{UID}", f"aiobus-{UID}/desk", "some", "some/where")]
    assert [mode_of(path) for path in made] == [0o700] * 4


async def test_that_holds_whatever_the_umask_is(a_bus: MakeBus, place: Path) -> None:
    before = os.umask(0)
    try:
        await a_bus("a", place / "some" / "where").join()
    finally:
        os.umask(before)
    assert mode_of(place / "some") == mode_of(place / "some" / "where") == 0o700


async def test_a_name_that_is_alive_is_in_use(a_bus: MakeBus, desk: Path) -> None:
    await a_bus("a").join()
    late = a_bus("a")
    with pytest.raises(NameInUse) as caught:
        await late.join()
    assert (caught.value.name, caught.value.url) == ("a", "ipc://desk")
    assert late.bound == []
    assert await a_bus("b").join() == ["a"]


async def test_a_name_with_more_waiting_than_it_accepts_is_in_use(
    a_bus: MakeBus, desk: Path
) -> None:
    """As one that is frozen: no process takes what the kernel has accepted."""
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(desk / "a.sock"))
        frozen.listen(0)
        waiting = []
        with pytest.raises(BlockingIOError):
            while True:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect(str(desk / "a.sock"))
        with pytest.raises(NameInUse):
            await a_bus("a").join()
        assert await a_bus("b").join() == ["a"]
        for each in waiting:
            each.close()


async def test_the_name_of_a_killed_process_is_free(a_bus: MakeBus, desk: Path) -> None:
    die_having(LISTEN, desk / "a.sock")
    assert (desk / "a.sock").exists()
    bus = a_bus("a")
    assert await bus.join() == []
    assert await a_bus("b").join() == ["a"]


async def test_the_socket_of_a_killed_process_is_removed(a_bus: MakeBus, desk: Path) -> None:
    die_having(LISTEN, desk / "dead.sock")
    assert await a_bus("a").join() == []
    assert os.listdir(desk) == ["a.sock"]


async def test_a_file_named_like_a_socket_is_left_alone(a_bus: MakeBus, desk: Path) -> None:
    (desk / "journal.sock").write_text("precious")
    assert await a_bus("a").join() == []
    assert (desk / "journal.sock").read_text() == "precious"


@pytest.mark.parametrize("kind", ["file", "directory", "link to a socket", "link to nothing"])
async def test_what_is_no_socket_at_our_path_is_left_alone_and_named(
    a_bus: MakeBus, desk: Path, place: Path, kind: str
) -> None:
    path = desk / "a.sock"
    with socket.socket(socket.AF_UNIX) as elsewhere:
        elsewhere.bind(str(place / "elsewhere"))
        if kind == "file":
            path.write_text("precious")
        elif kind == "directory":
            path.mkdir()
        else:
            path.symlink_to(place / ("elsewhere" if kind == "link to a socket" else "gone"))
        before = path.lstat()
        bus = a_bus("a")
        with pytest.raises(BusError, match=f"{path} is in the way"):
            await bus.join()
    assert bus.bound == []
    assert os.path.samestat(path.lstat(), before)


async def test_sockets_that_have_no_bus_name_are_left_alone(a_bus: MakeBus, desk: Path) -> None:
    names = ["no suffix", "a b.sock", ".sock", "dead.socket", f"{'x' * 65}.sock"]
    with pytest.MonkeyPatch.context() as here:
        here.chdir(desk)  # the last of them is too long to be bound from afar
        for name in names:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(name)
    assert await a_bus("a").join() == []
    assert sorted(os.listdir(desk)) == sorted([*names, "a.sock"])


async def test_a_dead_socket_whose_path_is_too_long_for_a_bus_is_left_alone(
    a_bus: MakeBus, place: Path
) -> None:
    deep = place / ("d" * (MAX_PATH - len(f"{place}//a.sock")))
    deep.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as here, socket.socket(socket.AF_UNIX) as listener:
        here.chdir(deep)
        listener.bind("long.sock")
    assert await a_bus("a", deep).join() == []
    assert sorted(os.listdir(deep)) == ["a.sock", "long.sock"]


async def test_a_datagram_socket_is_left_alone(a_bus: MakeBus, desk: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(desk / "log.sock"))
        assert await a_bus("a").join() == []
        with pytest.raises(BusError, match=r"log\.sock is in the way"):
            await a_bus("log").join()
    assert (desk / "log.sock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
async def test_a_dead_socket_of_another_user_is_left_alone(a_bus: MakeBus, desk: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(desk / "x.sock"))
    os.chown(desk / "x.sock", 4_000_123, -1)
    assert await a_bus("a").join() == []
    with pytest.raises(BusError, match=r"x\.sock is in the way"):
        await a_bus("x").join()
    assert (desk / "x.sock").exists()


async def test_a_path_as_long_as_a_socket_can_have_will_do(a_bus: MakeBus, place: Path) -> None:
    deep = place / ("d" * (MAX_PATH - len(f"{place}//a.sock")))
    bus = a_bus("a", deep)
    await bus.join()
    assert len(str(bus.path)) == MAX_PATH
    assert await a_bus("b", deep).join() == ["a"]


def test_that_is_as_long_as_libzmq_allows() -> None:
    assert MAX_PATH == zmq.IPC_PATH_MAX_LEN


async def test_a_byte_more_is_refused_with_what_to_do(a_bus: MakeBus, place: Path) -> None:
    rest = MAX_PATH + 1 - len(f"{place}//a.sock")
    bus = a_bus("a", place / ("x" * rest))
    sentence = f"has {MAX_PATH + 1} bytes, .* {MAX_PATH} .* use a shorter address or name"
    with pytest.raises(ValueError, match=sentence):
        await bus.join()
    assert os.listdir(place) == []


async def test_a_name_that_would_lead_elsewhere_is_refused(a_bus: MakeBus, place: Path) -> None:
    with pytest.raises(ValueError, match=r"name='\.\./a'"):
        await a_bus("../a").join()


# What is refused.


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o770, 0o701])
async def test_a_directory_that_is_open_to_others_is_refused_and_left_as_it_is(
    a_bus: MakeBus, desk: Path, mode: int
) -> None:
    os.chmod(desk, mode)
    bus = a_bus("a")
    with pytest.raises(BusError, match=rf"\(mode {mode:o}\).*`chmod 700 {desk}`"):
        await bus.join()
    assert (bus.bound, os.listdir(desk), mode_of(desk)) == ([], [], mode)


@pytest.mark.parametrize("kind", ["sticky", "in use"])
async def test_a_directory_that_is_there_for_others_is_not_to_be_closed_to_them(
    a_bus: MakeBus, place: Path, kind: str
) -> None:
    """As `ipc:///tmp`, where `chmod 700` would end the work of every other user."""
    path = place / "common"
    path.mkdir()
    path.chmod(0o1777 if kind == "sticky" else 0o755)
    if kind == "in use":
        (path / "notes").write_text("precious")
    with pytest.raises(BusError, match=f"such as ipc://{path}/desk") as caught:
        await a_bus("a", path).join()
    assert "chmod" not in str(caught.value)


async def test_so_is_one_in_a_directory_that_is_open_to_others(a_bus: MakeBus, place: Path) -> None:
    (place / f"aiobus-{UID}").mkdir(mode=0o755)
    with pytest.raises(BusError, match=f"`chmod 700 {place}/aiobus-{UID}`"):
        await a_bus("a").join()
    assert list((place / f"aiobus-{UID}").iterdir()) == []


@pytest.mark.parametrize("level", [f"aiobus-{UID}", f"aiobus-{UID}/desk"])
async def test_a_symbolic_link_is_refused_and_nothing_is_made_behind_it(
    a_bus: MakeBus, place: Path, level: str
) -> None:
    (place / "target").mkdir(mode=0o700)
    (place / level).parent.mkdir(mode=0o700, exist_ok=True)
    (place / level).symlink_to(place / "target")
    with pytest.raises(BusError, match=f"{place}/{level}: .*no symbolic link"):
        await a_bus("a").join()
    assert list((place / "target").iterdir()) == []


async def test_a_file_in_place_of_the_directory_is_refused(a_bus: MakeBus, place: Path) -> None:
    (place / "file").write_text("precious")
    for address in (place / "file", place / "file" / "below"):
        with pytest.raises(BusError, match=f"{place}/file.*: Not a directory; ipc://"):
            await a_bus("a", address).join()
    assert (place / "file").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
async def test_a_directory_of_another_user_is_refused(a_bus: MakeBus, desk: Path) -> None:
    os.chown(desk, 4_000_123, -1)
    sentence = f"{desk} belongs to user 4000123, not to 0; .* ipc:///home/me/desk"
    with pytest.raises(BusError, match=sentence):
        await a_bus("a").join()
    assert os.listdir(desk) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux has a /proc to refuse it")
async def test_a_directory_that_cannot_be_made_is_named_at_once(a_bus: MakeBus) -> None:
    with pytest.raises(BusError, match=r"/proc/aiobus: .*; ipc:///proc/aiobus/x needs a directory"):
        await a_bus("a", "/proc/aiobus/x").join()


async def test_a_file_system_without_locks_is_named(
    a_bus: MakeBus, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # as NFS does

    bus = a_bus("a")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(BusError, match=f"{desk} cannot be locked: .*local disk"):
        await bus.join()
    assert (bus.bound, bus.discovery.descriptors()) == ([], set())


# Waiting for the lock.


async def test_who_joins_waits_for_the_lock_and_goes_on_when_it_is_free(
    a_bus: MakeBus, desk: Path
) -> None:
    bus = a_bus("a")
    with locked(desk):
        joining = asyncio.create_task(bus.join())
        await asyncio.sleep(0)  # it has tried once
        assert (joining.done(), bus.bound) == (False, [])
    assert await joining == []


async def test_what_comes_to_be_while_it_waits_is_seen(a_bus: MakeBus, desk: Path) -> None:
    bus, other = a_bus("a"), a_bus("b")
    with locked(desk):
        joining = asyncio.create_task(bus.join())
        await asyncio.sleep(0)
        other.bind(f"ipc://{desk}/b.sock")
    assert await joining == ["b"]


async def test_a_killed_process_has_no_lock(a_bus: MakeBus, desk: Path) -> None:
    die_having(LOCK, desk)
    assert await a_bus("a").join() == []


async def test_a_lock_that_stays_taken_is_named_when_time_is_up(
    a_bus: MakeBus, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "JOIN_SECONDS", 0.02)
    bus = a_bus("a")
    with (
        run(LOCK, desk) as holder,
        pytest.raises(BusError, match=rf"{desk} has been locked .* for 0\.02 s"),
    ):
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        try:
            await bus.join()
        finally:
            holder.kill()
    assert (bus.bound, os.listdir(desk), bus.discovery.descriptors()) == ([], [], set())


async def test_cancelling_while_it_waits_leaves_nothing(a_bus: MakeBus, desk: Path) -> None:
    bus = a_bus("a")
    with locked(desk):
        joining = asyncio.create_task(bus.join())
        await asyncio.sleep(0)
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        assert (bus.bound, os.listdir(desk), bus.discovery.descriptors()) == ([], [], set())
    await bus.discovery.leave()
    assert await a_bus("b").join() == []


async def test_a_directory_removed_while_it_waits_is_made_again(a_bus: MakeBus, desk: Path) -> None:
    bus = a_bus("a")
    with locked(desk):
        joining = asyncio.create_task(bus.join())
        await asyncio.sleep(0)
        os.rmdir(desk)
    assert await joining == []
    assert bus.path.is_socket()


@pytest.mark.parametrize("is_made_again", [True, False])
async def test_a_directory_removed_between_opening_and_locking_it_is_begun_with_again(
    a_bus: MakeBus, desk: Path, monkeypatch: pytest.MonkeyPatch, is_made_again: bool
) -> None:
    flock = fcntl.flock
    taken: list[int] = []

    def slow_flock(descriptor: int, operation: int) -> None:
        if not taken:
            desk.rmdir()
            if is_made_again:
                desk.mkdir(mode=0o700)
        flock(descriptor, operation)
        taken.append(os.fstat(descriptor).st_nlink)

    monkeypatch.setattr(fcntl, "flock", slow_flock)
    bus = a_bus("a")
    assert await bus.join() == []
    assert bus.path.is_socket()
    assert taken[0] == 0  # it did get the lock of what was no longer there
    assert len(taken) == 3  # that one, the right one, and giving it back
    assert bus.discovery.descriptors() == set()


# Failing to bind.


@pytest.mark.parametrize("error", [OSError("mine"), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_when_binding_fails_nothing_is_left(
    a_bus: MakeBus, place: Path, error: BaseException
) -> None:
    bus = a_bus("a")

    def fail(endpoint: str) -> str:
        bus.bind(endpoint)
        raise error

    with pytest.raises(type(error)):
        await bus.discovery.join("a", fail, print)
    assert os.listdir(place / f"aiobus-{UID}") == []
    assert bus.discovery.descriptors() == set()


async def test_when_binding_fails_before_there_is_a_file_nothing_is_left(
    a_bus: MakeBus, place: Path
) -> None:
    def fail(endpoint: str) -> str:
        raise OSError("mine")

    with pytest.raises(OSError, match="mine"):
        await a_bus("a").discovery.join("a", fail, print)
    assert os.listdir(place / f"aiobus-{UID}") == []


async def test_when_binding_fails_the_others_stay(a_bus: MakeBus, desk: Path) -> None:
    await a_bus("b").join()
    bus = a_bus("a")
    bus.socket.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await bus.join()
    assert await a_bus("c").join() == ["b"]


async def test_after_a_failure_it_can_join_under_another_name(a_bus: MakeBus, desk: Path) -> None:
    await a_bus("a").join()
    bus = a_bus("a")
    with pytest.raises(NameInUse):
        await bus.join()
    bus.name = "b"
    assert await bus.join() == ["a"]


# Leaving.


async def test_who_leaves_takes_its_socket_away(a_bus: MakeBus, desk: Path) -> None:
    first, second = a_bus("a"), a_bus("b")
    await first.join()
    await second.join()
    await first.discovery.leave()
    assert os.listdir(desk) == ["b.sock"]


async def test_the_last_to_leave_takes_the_directory_away_and_no_parent(
    a_bus: MakeBus, desk: Path
) -> None:
    first, second = a_bus("a"), a_bus("b")
    await first.join()
    await second.join()
    await first.discovery.leave()
    await second.discovery.leave()
    assert os.listdir(desk.parent) == []


async def test_a_directory_given_by_its_path_goes_with_the_bus_that_made_it(
    a_bus: MakeBus, place: Path
) -> None:
    bus = a_bus("a", place / "mine" / "desk")
    await bus.join()
    await bus.discovery.leave()
    assert os.listdir(place / "mine") == []


async def test_a_directory_that_a_user_has_made_stays(a_bus: MakeBus, place: Path) -> None:
    (place / "mine").mkdir(mode=0o700)
    bus = a_bus("a", place / "mine")
    await bus.join()
    await bus.discovery.leave()
    assert os.listdir(place / "mine") == []


async def test_a_directory_with_something_in_it_stays(a_bus: MakeBus, desk: Path) -> None:
    (desk / "notes").write_text("precious")
    bus = a_bus("a")
    await bus.join()
    await bus.discovery.leave()
    assert os.listdir(desk) == ["notes"]


async def test_leaving_again_is_nothing(a_bus: MakeBus, desk: Path) -> None:
    bus, late = a_bus("a"), a_bus("a")
    await bus.join()
    await bus.discovery.leave()
    await late.join()
    await bus.discovery.leave()
    assert late.path.is_socket()


async def test_a_ctrl_c_while_it_leaves_does_not_keep_its_socket(
    monkeypatch: pytest.MonkeyPatch, bus: Bus
) -> None:
    unlink = os.unlink

    def ctrl_c(path: str) -> None:
        monkeypatch.setattr(os, "unlink", unlink)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "unlink", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        await bus.discovery.leave()
    assert not bus.path.exists()


async def test_leaving_without_having_joined_is_nothing(a_bus: MakeBus, place: Path) -> None:
    await a_bus("a").discovery.leave()
    assert os.listdir(place) == []


async def test_leaving_when_the_socket_is_gone_already_takes_the_directory_away(
    desk: Path, bus: Bus
) -> None:
    bus.path.unlink()
    await bus.discovery.leave()
    assert os.listdir(desk.parent) == []


async def test_leaving_when_all_is_gone_is_nothing(desk: Path, bus: Bus) -> None:
    shutil.rmtree(desk.parent)
    await bus.discovery.leave()
    assert not desk.parent.exists()


async def test_who_leaves_late_does_not_take_the_socket_of_its_successor_away(
    a_bus: MakeBus, desk: Path
) -> None:
    """Whose inode may well have the same number."""
    bus, successor = a_bus("a"), a_bus("a")
    await bus.join()
    bus.socket.close()
    await successor.join()
    await bus.discovery.leave()
    assert await a_bus("b").join() == ["a"]


async def test_who_leaves_does_not_remove_a_file_that_has_taken_its_place(bus: Bus) -> None:
    bus.path.unlink()
    bus.path.write_text("precious")
    await bus.discovery.leave()
    assert bus.path.read_text() == "precious"


async def test_who_leaves_waits_for_the_lock(desk: Path, bus: Bus) -> None:
    with locked(desk):
        leaving = asyncio.create_task(bus.discovery.leave())
        await asyncio.sleep(0)
        assert (leaving.done(), bus.path.exists()) == (False, True)
    await leaving
    assert os.listdir(desk.parent) == []


async def test_who_does_not_get_the_lock_leaves_without_it_and_keeps_the_directory(
    a_bus: MakeBus, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "LEAVE_SECONDS", 0.02)
    bus = a_bus("a")
    await bus.join()
    with locked(desk):
        await bus.discovery.leave()
        assert os.listdir(desk) == []


async def test_who_is_cancelled_while_leaving_has_left(desk: Path, bus: Bus) -> None:
    with locked(desk):
        leaving = asyncio.create_task(bus.discovery.leave())
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert os.listdir(desk) == []
    await bus.discovery.leave()
    assert bus.discovery.descriptors() == set()


async def test_who_leaves_a_directory_opened_to_others_since_takes_its_socket_away(
    desk: Path, bus: Bus
) -> None:
    os.chmod(desk, 0o755)
    await bus.discovery.leave()
    assert os.listdir(desk) == []


async def test_a_socket_that_cannot_be_removed_is_told_of(
    a_bus: MakeBus,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    bus = a_bus("a")
    await bus.join()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)  # as when the directory was made read-only
        await bus.discovery.leave()
    assert caplog.messages == [f"{bus.path} could not be removed: Permission denied"]


async def test_it_can_join_again_after_it_left(bus: Bus) -> None:
    await bus.discovery.leave()
    bus.socket.close()
    bus.socket = socket.socket(socket.AF_UNIX)
    assert await bus.join() == []


# Its place, while it is there.


async def test_while_its_socket_is_at_its_path_nothing_is_done(bus: Bus) -> None:
    before = bus.path.lstat()
    os.utime(bus.path)  # as a script does that keeps a cleaner of /tmp away
    bus.watch()
    assert (len(bus.bound), bus.told, bus.lost) == (1, [], [])
    assert os.path.samestat(bus.path.lstat(), before)


@pytest.mark.parametrize("what", ["socket", "directory", "all"])
async def test_who_has_vanished_is_there_again_and_finds_who_came_meanwhile(
    a_bus: MakeBus, desk: Path, what: str
) -> None:
    bus, late = a_bus("a"), a_bus("b")
    await bus.join()
    if what == "socket":
        bus.path.unlink()
    else:
        shutil.rmtree(desk if what == "directory" else desk.parent)
    assert await late.join() == []
    bus.watch()
    assert bus.found == ["b"]
    assert bus.told == [
        f"{bus.path} had vanished and is made again; other buses find this bus again"
    ]
    assert await a_bus("c").join() == ["a", "b"]
    bus.watch()
    assert (len(bus.told), len(bus.bound)) == (1, 2)
    await bus.discovery.leave()
    assert not bus.path.exists()


async def test_who_has_made_its_socket_again_is_found_by_one_that_never_vanished(
    a_bus: MakeBus, desk: Path
) -> None:
    """It took the other for the one of that name it knows, and does not say hello to it."""
    vanished, other, third = a_bus("a"), a_bus("b"), a_bus("c")
    await vanished.join()
    vanished.path.unlink()
    assert await other.join() == []
    vanished.watch()
    assert await third.join() == ["a", "b"]
    other.discovery.remember(Member("c", f"ipc://{desk}/c.sock"))  # it has said hello by now
    for _ in range(2 * LOOKS):
        for each in (vanished, other, third):
            each.watch()
    assert (vanished.found, other.found, third.found) == (["b", "c"], ["a"], [])


async def test_a_directory_that_is_looked_through_may_have_anything_in_it(
    desk: Path, bus: Bus
) -> None:
    die_having(LISTEN, desk / "dead.sock")
    (desk / "file.sock").write_text("precious")
    (desk / "a b.sock").mkdir()
    for _ in range(LOOKS):
        bus.watch()
    assert (bus.found, bus.told) == ([], [])
    assert sorted(os.listdir(desk)) == ["a b.sock", "a.sock", "dead.sock", "file.sock"]


async def test_a_vanished_directory_is_made_for_this_user_alone(desk: Path, bus: Bus) -> None:
    shutil.rmtree(desk.parent)
    bus.watch()
    assert [mode_of(path) for path in (desk.parent, desk)] == [0o700] * 2


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="only Linux tells who listens")
async def test_a_bus_without_a_file_is_unreached_until_it_has_been_reported(
    a_bus: MakeBus, desk: Path, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was published before it is found is owed to it, which its being unreached says."""
    shutil.rmtree(desk)
    late, reported = a_bus("b"), []
    await late.join()
    assert late.discovery.unreached == [f"ipc://{bus.path}"]

    def on_discovered(member: Member) -> None:
        reported.append((member.name, list(late.discovery.unreached)))

    monkeypatch.setattr(late, "on_discovered", on_discovered)
    bus.watch()
    late.watch()
    assert reported == [("a", [f"ipc://{bus.path}"])]
    assert late.discovery.unreached == []


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="only Linux tells who listens")
async def test_a_bus_whose_file_is_gone_because_it_ends_is_not_unreached(
    a_bus: MakeBus, bus: Bus
) -> None:
    """It removes its file first; a bus that came between said that it did not answer."""
    bus.path.unlink()
    asyncio.get_running_loop().call_later(0.05, bus.socket.close)
    late = a_bus("b")
    assert await late.join() == []
    assert late.discovery.unreached == []


async def test_a_path_that_another_living_bus_has_by_now_is_not_touched_and_the_name_is_lost(
    a_bus: MakeBus, desk: Path
) -> None:
    bus, successor = a_bus("a"), a_bus("a")
    await bus.join()
    bus.path.unlink()
    await successor.join()
    for _ in range(2):
        bus.watch()
    (error,) = bus.lost
    assert isinstance(error, NameInUse)
    assert (error.name, error.url, len(bus.bound)) == ("a", "ipc://desk", 1)
    await bus.discovery.leave()
    assert await a_bus("b").join() == ["a"]


async def test_a_path_that_a_dead_one_has_left_is_taken_back(a_bus: MakeBus, bus: Bus) -> None:
    bus.path.unlink()
    die_having(LISTEN, bus.path)
    bus.watch()
    assert (bus.lost, await a_bus("b").join()) == ([], ["a"])


async def test_while_another_has_the_lock_a_vanished_socket_is_made_at_a_later_look(
    desk: Path, bus: Bus
) -> None:
    bus.path.unlink()
    with locked(desk):
        bus.watch()
        assert (bus.path.exists(), bus.told) == (False, [])
    bus.watch()
    assert bus.path.is_socket()


async def test_a_lock_that_another_keeps_is_said_once(desk: Path, bus: Bus) -> None:
    bus.path.unlink()
    with locked(desk):
        for _ in range(2 * DENIED):
            bus.watch()
    (text,) = bus.told
    assert f"another process keeps {desk} locked" in text
    bus.watch()
    assert bus.path.is_socket()


async def test_what_keeps_a_vanished_socket_from_being_made_is_said_once(bus: Bus) -> None:
    bus.path.unlink()
    bus.path.write_text("precious")
    for _ in range(3):
        bus.watch()
    (text,) = bus.told
    assert text.startswith(
        f"other buses cannot find this bus, or cannot link with it: {bus.path} is in"
    )
    assert bus.path.read_text() == "precious"
    bus.path.unlink()
    bus.watch()
    assert bus.path.is_socket()


async def test_a_look_leaves_no_descriptor_open_and_leaving_none_at_all(
    a_bus: MakeBus, desk: Path
) -> None:
    gc.collect()  # what earlier tests have left
    before = len(os.listdir("/dev/fd"))
    bus = a_bus("a")
    await bus.join()
    bus.path.unlink()
    bus.watch()
    of_one = len(os.listdir("/dev/fd"))
    bus.path.unlink()
    bus.old.close()
    bus.watch()
    assert len(os.listdir("/dev/fd")) == of_one
    await bus.discovery.leave()
    bus.old.close()
    assert len(os.listdir("/dev/fd")) == before + 1  # the socket of the bus itself


# Without descriptors.


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`limit(n)`: the process may open n more files."""

    def limit(free: int) -> None:
        monkeypatch.setattr(directory, "spare_descriptors", lambda: free)

    return limit


async def test_who_has_too_few_descriptors_accepts_no_peer_and_keeps_its_name(
    a_bus: MakeBus, limit: Callable[[int], None], bus: Bus
) -> None:
    bus.socket.setblocking(False)
    limit(SHORT - 1)
    bus.watch()
    bus.watch()
    (text,) = bus.told
    assert text.startswith(f"this process may open fewer than {SHORT} more files")
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(bus.path))
        with pytest.raises(BlockingIOError):
            bus.socket.accept()
    with pytest.raises(NameInUse):
        await a_bus("a").join()
    assert await a_bus("b").join() == ["a"]


async def test_with_enough_descriptors_it_accepts_again_with_the_same_socket(
    desk: Path, limit: Callable[[int], None], bus: Bus
) -> None:
    limit(SHORT - 1)
    bus.watch()
    limit(AMPLE - 1)
    bus.watch()
    limit(AMPLE)
    bus.watch()
    bus.watch()
    assert bus.told[1:] == ["there are descriptors again: other buses can link with this one"]
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(bus.path))
        bus.socket.accept()[0].close()
    assert (len(bus.bound), os.listdir(desk)) == (1, ["a.sock"])


async def test_who_vanishes_while_it_accepts_no_peer_keeps_its_name_and_accepts_later(
    a_bus: MakeBus, desk: Path, limit: Callable[[int], None], bus: Bus
) -> None:
    limit(0)
    bus.watch()
    shutil.rmtree(desk)
    bus.watch()
    with pytest.raises(NameInUse):
        await a_bus("a").join()
    assert len(bus.bound) == 1
    limit(AMPLE)
    bus.watch()
    assert len(bus.bound) == 2
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(bus.path))
        bus.socket.accept()[0].close()
    assert os.listdir(desk) == ["a.sock"]


async def test_who_leaves_while_it_accepts_no_peer_leaves_no_file(
    desk: Path, limit: Callable[[int], None], bus: Bus
) -> None:
    limit(0)
    bus.watch()
    assert sorted(os.listdir(desk)) == ["a.sock", "a.sock~"]
    await bus.discovery.leave()
    assert os.listdir(desk.parent) == []


async def test_what_one_has_left_that_died_while_it_accepted_no_peer_is_removed(
    a_bus: MakeBus, desk: Path
) -> None:
    for name in ("a.sock", "a.sock~"):
        die_having(LISTEN, desk / name)
    (desk / "b.sock~").write_text("precious")
    assert await a_bus("c").join() == []
    assert sorted(os.listdir(desk)) == ["b.sock~", "c.sock"]


# Who may be where.


def test_a_member_may_listen_under_its_name_in_the_directory_and_nowhere_else(place: Path) -> None:
    discovery, desk = Directory("desk"), f"{place}/aiobus-{UID}/desk"
    assert discovery.allows(Member("a", f"ipc://{desk}/a.sock"))
    assert not discovery.allows(Member("a", f"ipc://{desk}/b.sock"))
    assert not discovery.allows(Member("a", f"ipc://{desk}/./a.sock"))
    assert not discovery.allows(Member("a", f"ipc://{place}/a.sock"))
    assert not discovery.allows(Member("a", f"{desk}/a.sock"))
    assert not discovery.allows(Member("a", "tcp://127.0.0.1:7555"))
    assert not discovery.allows(Member("../a", f"ipc://{desk}/../a.sock"))
    assert not discovery.allows(Member("", f"ipc://{desk}/.sock"))


async def test_who_accepts_and_who_is_absent_are_told_apart(desk: Path, bus: Bus) -> None:
    (desk / "file.sock").write_text("precious")
    die_having(LISTEN, desk / "dead.sock")
    a, _, dead, gone = members = [
        Member(name, f"ipc://{desk}/{name}.sock") for name in ("a", "file", "dead", "gone")
    ]
    assert await bus.discovery.probe_accepting(members) == [a]
    assert await bus.discovery.probe_absent(members) == [dead, gone]


@pytest.fixture
def table(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for the kernel's list of sockets: empty, as it is about buses of another network
    namespace.
    """
    path = place / "table"
    path.write_text("Num RefCount Protocol Flags Type St Inode Path\n")
    monkeypatch.setattr(unix_socket, "TABLE", str(path))
    return path


def member(bus: Bus) -> Member:
    return Member(bus.name, f"ipc://{bus.path}")


def move_aside(bus: Bus, *, is_bound: bool) -> socket.socket:
    """What a bus does that stops accepting, up to the middle: its socket is aside. A plain socket
    takes its place, which does not listen yet if `is_bound`.
    """
    bus.path.rename(f"{bus.path}~")
    plain = socket.socket(socket.AF_UNIX)
    if is_bound:
        plain.bind(str(bus.path))
    return plain


@pytest.mark.parametrize("is_bound", [False, True])
async def test_a_bus_that_moves_its_socket_is_not_absent(
    desk: Path, table: Path, bus: Bus, other: Bus, *, is_bound: bool
) -> None:
    with locked(desk):
        plain = move_aside(other, is_bound=is_bound)
        looking = asyncio.create_task(bus.discovery.probe_absent([member(other)]))
        await asyncio.wait([looking], timeout=4 * PAUSE_SECONDS)
        if not is_bound:
            plain.bind(str(other.path))
        plain.listen()
    assert await looking == []
    plain.close()


async def test_a_bus_that_is_frozen_while_it_moves_its_socket_is_not_absent(
    a_bus: MakeBus, desk: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "ABSENT_SECONDS", 4 * PAUSE_SECONDS)
    bus, other = a_bus("a"), a_bus("b")
    await bus.join()
    await other.join()
    with locked(desk):
        move_aside(other, is_bound=False).close()
        assert await bus.discovery.probe_absent([member(other)]) == []


async def test_one_that_died_while_it_moved_its_socket_is_absent(
    table: Path, bus: Bus, other: Bus
) -> None:
    move_aside(other, is_bound=True).close()
    other.socket.close()
    assert await bus.discovery.probe_absent([member(other)]) == [member(other)]


async def test_where_the_kernel_does_not_tell_who_listens_only_a_refusal_is_proof(
    a_bus: MakeBus, desk: Path, table: Path
) -> None:
    """The directory of a frozen bus may have been removed."""
    table.unlink()  # noqa: ASYNC240
    bus, frozen = a_bus("a"), a_bus("b")
    await bus.join()
    await frozen.join()
    die_having(LISTEN, desk / "dead.sock")
    dead, gone = [Member(name, f"ipc://{desk}/{name}.sock") for name in ("dead", "gone")]
    assert await bus.discovery.probe_absent([member(frozen), dead, gone]) == [dead]
    shutil.rmtree(desk)
    assert await bus.discovery.probe_absent([member(frozen), dead, gone]) == []


async def test_where_the_directory_has_vanished_who_listens_is_not_absent_and_others_are(
    a_bus: MakeBus, desk: Path
) -> None:
    bus, frozen = a_bus("a"), a_bus("b")
    await bus.join()
    await frozen.join()
    gone = Member("gone", f"ipc://{desk}/gone.sock")
    shutil.rmtree(desk)
    assert await bus.discovery.probe_absent([member(frozen), gone]) == [gone]


@contextmanager
def no_descriptor() -> Iterator[None]:
    """This process can open no file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_without_a_descriptor_no_bus_is_absent(desk: Path, bus: Bus) -> None:
    die_having(LISTEN, desk / "dead.sock")
    with no_descriptor():
        members = [Member(name, f"ipc://{desk}/{name}.sock") for name in ("dead", "gone")]
        assert await bus.discovery.probe_absent(members) == []


def test_a_socket_that_cannot_be_looked_at_is_neither_alive_nor_dead(place: Path) -> None:
    die_having(LISTEN, place / "dead.sock")
    with no_descriptor():
        assert unix_socket.probe(str(place / "dead.sock")) is unix_socket.PathState.UNKNOWN
        assert unix_socket.listening_paths(str(place)) is None


async def test_a_bus_that_cannot_be_looked_at_is_found_at_a_later_look(
    monkeypatch: pytest.MonkeyPatch, bus: Bus, other: Bus
) -> None:
    for _ in range(LOOKS - 1):
        bus.watch()
    monkeypatch.setattr(directory, "probe", lambda path: unix_socket.PathState.UNKNOWN)
    bus.watch()
    assert bus.found == []
    monkeypatch.undo()
    bus.watch()
    assert bus.found == ["b"]


async def test_one_that_does_not_listen_yet_is_found_when_it_gives_back_the_lock(
    desk: Path, bus: Bus
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        with locked(desk):
            other.bind(str(desk / "b.sock"))
            for _ in range(2 * LOOKS):
                bus.watch()
            other.listen()
            assert bus.found == []
        bus.watch()
        assert bus.found == ["b"]


async def test_the_sockets_of_a_directory_are_known_by_their_addresses(bus: Bus) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(bus.path))
        assert bus.discovery.owns_address(bus.socket.getsockname())
        assert bus.discovery.owns_address(other.getpeername())
        assert not bus.discovery.owns_address(other.getsockname())
    assert bus.discovery.owns_address(os.fsencode(bus.path))


@pytest.mark.parametrize(
    "address", ["", b"", b"\0abstract", "a.sock", ("127.0.0.1", 7555), ("::1", 7, 0, 0), None, 3]
)
def test_no_other_address_is_of_the_discovery(place: Path, address: object) -> None:
    assert not Directory("desk").owns_address(address)


def test_neither_the_directory_nor_what_is_beside_it_is_a_socket_of_the_discovery(
    place: Path,
) -> None:
    for rest in ("", "/x/a.sock", "-2/a.sock", "/../a.sock"):
        assert not Directory("desk").owns_address(f"{place}/aiobus-{UID}/desk{rest}")


# A fork while the lock is held.


async def test_the_descriptor_of_the_lock_is_known_while_it_is_held(
    a_bus: MakeBus, desk: Path
) -> None:
    bus = a_bus("a")
    seen: list[bool] = []

    def bind(endpoint: str) -> str:
        seen.extend(
            os.path.samestat(os.fstat(lock), os.stat(desk)) for lock in bus.discovery.descriptors()
        )
        return bus.bind(endpoint)

    await bus.discovery.join("a", bind, print)
    assert seen == [True]
    assert bus.discovery.descriptors() == set()


async def test_a_child_forked_meanwhile_does_not_keep_the_lock(a_bus: MakeBus, desk: Path) -> None:
    bus = a_bus("a")
    of_the_child: list[int] = []

    def bind(endpoint: str) -> str:
        # What a fork does to a descriptor; one at a time, so that the test's threads do not mind.
        of_the_child.extend(os.dup(lock) for lock in bus.discovery.descriptors())
        return bus.bind(endpoint)

    await bus.discovery.join("a", bind, print)
    try:
        with locked(desk):
            pass
    finally:
        os.close(of_the_child[0])


# Many at once.

JOIN = """
import asyncio, json, socket, sys
from aiobus.errors import NameInUse
from aiobus.discovery import directory
from aiobus.discovery import unix_socket
from aiobus.discovery.directory import Directory

directory.TMP = sys.argv[2]

async def main(name):
    discovery = Directory("desk")
    listener = socket.socket(socket.AF_UNIX)

    def bind(endpoint):
        listener.bind(endpoint.removeprefix("ipc://"))
        listener.listen()
        return endpoint

    print("ready", flush=True)
    sys.stdin.readline()
    try:
        known = [member.name for member in await discovery.join(name, bind, print)]
    except NameInUse:
        known = None
    print(json.dumps(known), flush=True)
    sys.stdin.readline()
    listener.close()
    await discovery.leave()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.slow
def test_of_17_processes_that_join_at_once_the_later_knows_the_earlier(
    desk: Path, place: Path
) -> None:
    names = [f"bus-{number}" for number in range(16)] + ["bus-7"]
    processes = [run(JOIN, name, place) for name in names]

    def say(line: str) -> None:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(line)
            process.stdin.flush()

    def hear() -> list[str]:
        return [process.stdout.readline() for process in processes if process.stdout is not None]

    try:
        assert hear() == ["ready\n"] * 17
        say("join\n")
        answers = [(name, json.loads(line)) for name, line in zip(names, hear(), strict=True)]
        assert [name for name, known in answers if known is None] == ["bus-7"]
        known = {name: set(others) for name, others in answers if others is not None}
        assert sorted(map(len, known.values())) == list(range(16))
        for name, others in known.items():
            assert others == {each for each in known if len(known[each]) < len(known[name])}
        say("leave\n")
        assert [process.wait() for process in processes] == [0] * 17
        assert not desk.exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


COME_AND_GO = """
import asyncio, os, socket, sys
from aiobus.discovery import directory
from aiobus.discovery import unix_socket
from aiobus.discovery.directory import Directory

directory.TMP = sys.argv[2]

async def main(name):
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(200):
        discovery = Directory("desk")
        with socket.socket(socket.AF_UNIX) as listener:
            def bind(endpoint):
                listener.bind(endpoint.removeprefix("ipc://"))
                listener.listen()
                return endpoint

            await discovery.join(name, bind, print)
            assert name + ".sock" in os.listdir(discovery.path)
        await discovery.leave()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.slow
def test_many_that_come_and_go_never_join_a_directory_that_is_gone(desk: Path, place: Path) -> None:
    processes = [run(COME_AND_GO, name, place) for name in "abcd"]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait() for process in processes] == [0] * 4
        assert not desk.exists()
    finally:
        for process in processes:
            process.kill()
            process.communicate()

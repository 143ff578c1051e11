"""Meeting in a directory: real files, real locks, real sockets and real processes."""

import asyncio
import errno
import fcntl
import json
import os
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

import pytest
import zmq

from aiobus.errors import BusError, NameInUse
from aiobus.transport import directory
from aiobus.transport.directory import MAX_PATH, Directory
from aiobus.transport.meeting import Meeting, Member

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class Bus:
    """One that meets others, and listens as a bus does. The socket's file stays when it dies."""

    def __init__(self, address: object, name: str) -> None:
        self.meeting = Directory(str(address))
        self.name = name
        self.bound: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX)

    def bind(self, endpoint: str) -> str:
        self.socket.bind(endpoint.removeprefix("ipc://"))
        self.socket.listen()
        self.bound.append(endpoint)
        return endpoint

    async def join(self) -> list[str]:
        return [member.name for member in await self.meeting.join(self.name, self.bind, print)]

    @property
    def path(self) -> Path:
        return Path(self.meeting.path, f"{self.name}.sock")


MakeBus = Callable[..., Bus]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The runtime directory; pytest's own would make the paths of sockets too long."""
    with tempfile.TemporaryDirectory(prefix="ab", dir="/tmp") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
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


@pytest.fixture
def desk(place: Path) -> Path:
    """Where `ipc://desk` is, as another bus has left it."""
    path = place / "aiobus" / "desk"
    path.mkdir(mode=0o700, parents=True)
    path.parent.chmod(0o700)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else has the directory's lock."""
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


def test_it_is_a_meeting(place: Path) -> None:
    meeting: Meeting = Directory("desk")
    assert repr(meeting) == f"<Directory ipc://desk {place}/aiobus/desk>"


def test_a_name_is_a_directory_in_the_runtime_directory(place: Path) -> None:
    assert Directory("desk").path == f"{place}/aiobus/desk"


async def test_a_runtime_directory_that_is_not_there_is_made(
    a_bus: MakeBus, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{place}/run")
    await a_bus("a").join()
    assert os.listdir(place / "run" / "aiobus" / "desk") == ["a.sock"]


def test_a_relative_runtime_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "here")
    assert "here" not in Directory("desk").path


def without_runtime_directories(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    """As a user who has none: `uid` has no /run/user/<uid>."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def test_without_a_runtime_directory_it_is_one_of_the_user_in_tmpdir(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_runtime_directories(monkeypatch, 4_000_123)
    monkeypatch.setenv("TMPDIR", str(place))
    assert Directory("desk").path == f"{place}/aiobus-4000123/desk"


@pytest.mark.parametrize("tmpdir", ["", "tmp"])
def test_without_a_usable_tmpdir_it_is_one_of_the_user_in_tmp(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmpdir: str
) -> None:
    without_runtime_directories(monkeypatch, 4_000_123)
    monkeypatch.setenv("TMPDIR", tmpdir)
    assert Directory("desk").path == f"{Path('/tmp').resolve()}/aiobus-4000123/desk"


def test_the_runtime_directory_of_another_user_is_not_used(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_123)
    assert not Directory("desk").path.startswith(str(place))


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
    assert bus.bound == [f"ipc://{place}/aiobus/desk/strategy-1.sock"]


async def test_who_joins_learns_who_is_there_and_where(a_bus: MakeBus, desk: Path) -> None:
    for name in ("c", "a"):
        await a_bus(name).join()
    last = a_bus("b")
    assert await last.meeting.join("b", last.bind, print) == [
        Member("a", f"ipc://{desk}/a.sock"),
        Member("c", f"ipc://{desk}/c.sock"),
    ]


async def test_what_is_made_is_for_this_user_alone(a_bus: MakeBus, place: Path) -> None:
    await a_bus("a").join()
    await a_bus("a", place / "some" / "where").join()
    made = [place / path for path in ("aiobus", "aiobus/desk", "some", "some/where")]
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
    """As one that is frozen: nobody takes what the kernel has accepted."""
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


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o770, 0o701, 0o1777])
async def test_a_directory_that_is_open_to_others_is_refused_and_left_as_it_is(
    a_bus: MakeBus, desk: Path, mode: int
) -> None:
    os.chmod(desk, mode)
    bus = a_bus("a")
    with pytest.raises(BusError, match=rf"\(mode {mode:o}\).*`chmod 700 {desk}`"):
        await bus.join()
    assert (bus.bound, os.listdir(desk), mode_of(desk)) == ([], [], mode)


async def test_so_is_one_in_a_directory_that_is_open_to_others(a_bus: MakeBus, place: Path) -> None:
    (place / "aiobus").mkdir(mode=0o755)
    with pytest.raises(BusError, match=f"`chmod 700 {place}/aiobus`"):
        await a_bus("a").join()
    assert list((place / "aiobus").iterdir()) == []


@pytest.mark.parametrize("level", ["aiobus", "aiobus/desk"])
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
    with pytest.raises(BusError, match=f"{desk} belongs to user 4000123, not to 0"):
        await a_bus("a").join()
    assert os.listdir(desk) == []


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
    assert (bus.bound, bus.meeting.descriptors()) == ([], set())


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
    assert (bus.bound, os.listdir(desk), bus.meeting.descriptors()) == ([], [], set())


async def test_cancelling_while_it_waits_leaves_nothing(a_bus: MakeBus, desk: Path) -> None:
    bus = a_bus("a")
    with locked(desk):
        joining = asyncio.create_task(bus.join())
        await asyncio.sleep(0)
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        assert (bus.bound, os.listdir(desk), bus.meeting.descriptors()) == ([], [], set())
    await bus.meeting.leave()
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
    assert bus.meeting.descriptors() == set()


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
        await bus.meeting.join("a", fail, print)
    assert os.listdir(place / "aiobus") == []
    assert bus.meeting.descriptors() == set()


async def test_when_binding_fails_before_there_is_a_file_nothing_is_left(
    a_bus: MakeBus, place: Path
) -> None:
    def fail(endpoint: str) -> str:
        raise OSError("mine")

    with pytest.raises(OSError, match="mine"):
        await a_bus("a").meeting.join("a", fail, print)
    assert os.listdir(place / "aiobus") == []


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
    await first.meeting.leave()
    assert os.listdir(desk) == ["b.sock"]


async def test_the_last_to_leave_takes_the_directory_away_and_no_parent(
    a_bus: MakeBus, desk: Path
) -> None:
    first, second = a_bus("a"), a_bus("b")
    await first.join()
    await second.join()
    await first.meeting.leave()
    await second.meeting.leave()
    assert os.listdir(desk.parent) == []


async def test_a_directory_given_by_its_path_goes_with_the_bus_that_made_it(
    a_bus: MakeBus, place: Path
) -> None:
    bus = a_bus("a", place / "mine" / "desk")
    await bus.join()
    await bus.meeting.leave()
    assert os.listdir(place / "mine") == []


async def test_a_directory_that_a_user_has_made_stays(a_bus: MakeBus, place: Path) -> None:
    (place / "mine").mkdir(mode=0o700)
    bus = a_bus("a", place / "mine")
    await bus.join()
    await bus.meeting.leave()
    assert os.listdir(place / "mine") == []


async def test_a_directory_with_something_in_it_stays(a_bus: MakeBus, desk: Path) -> None:
    (desk / "notes").write_text("precious")
    bus = a_bus("a")
    await bus.join()
    await bus.meeting.leave()
    assert os.listdir(desk) == ["notes"]


async def test_leaving_again_is_nothing(a_bus: MakeBus, desk: Path) -> None:
    bus, late = a_bus("a"), a_bus("a")
    await bus.join()
    await bus.meeting.leave()
    await late.join()
    await bus.meeting.leave()
    assert late.path.is_socket()


async def test_a_ctrl_c_while_it_leaves_does_not_keep_its_socket(
    a_bus: MakeBus, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = a_bus("a")
    await bus.join()
    unlink = os.unlink

    def ctrl_c(path: str) -> None:
        monkeypatch.setattr(os, "unlink", unlink)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "unlink", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        await bus.meeting.leave()
    assert not bus.path.exists()


async def test_leaving_without_having_joined_is_nothing(a_bus: MakeBus, place: Path) -> None:
    await a_bus("a").meeting.leave()
    assert os.listdir(place) == []


async def test_leaving_when_the_socket_is_gone_already_takes_the_directory_away(
    a_bus: MakeBus, desk: Path
) -> None:
    bus = a_bus("a")
    await bus.join()
    bus.path.unlink()
    await bus.meeting.leave()
    assert os.listdir(desk.parent) == []


async def test_leaving_when_all_is_gone_is_nothing(a_bus: MakeBus, desk: Path) -> None:
    bus = a_bus("a")
    await bus.join()
    shutil.rmtree(desk.parent)
    await bus.meeting.leave()
    assert not desk.parent.exists()


async def test_who_leaves_late_does_not_take_the_socket_of_its_successor_away(
    a_bus: MakeBus, desk: Path
) -> None:
    """Whose inode may well have the same number."""
    bus, successor = a_bus("a"), a_bus("a")
    await bus.join()
    bus.socket.close()
    await successor.join()
    await bus.meeting.leave()
    assert await a_bus("b").join() == ["a"]


async def test_who_leaves_does_not_remove_a_file_that_has_taken_its_place(
    a_bus: MakeBus, desk: Path
) -> None:
    bus = a_bus("a")
    await bus.join()
    bus.path.unlink()
    bus.path.write_text("precious")
    await bus.meeting.leave()
    assert bus.path.read_text() == "precious"


async def test_who_leaves_waits_for_the_lock(a_bus: MakeBus, desk: Path) -> None:
    bus = a_bus("a")
    await bus.join()
    with locked(desk):
        leaving = asyncio.create_task(bus.meeting.leave())
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
        await bus.meeting.leave()
        assert os.listdir(desk) == []


async def test_who_is_cancelled_while_leaving_has_left(a_bus: MakeBus, desk: Path) -> None:
    bus = a_bus("a")
    await bus.join()
    with locked(desk):
        leaving = asyncio.create_task(bus.meeting.leave())
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert os.listdir(desk) == []
    await bus.meeting.leave()
    assert bus.meeting.descriptors() == set()


async def test_who_leaves_a_directory_opened_to_others_since_takes_its_socket_away(
    a_bus: MakeBus, desk: Path
) -> None:
    bus = a_bus("a")
    await bus.join()
    os.chmod(desk, 0o755)
    await bus.meeting.leave()
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
        await bus.meeting.leave()
    assert caplog.messages == [f"{bus.path} could not be removed: Permission denied"]


async def test_it_can_join_again_after_it_left(a_bus: MakeBus, desk: Path) -> None:
    bus = a_bus("a")
    await bus.join()
    await bus.meeting.leave()
    bus.socket.close()
    bus.socket = socket.socket(socket.AF_UNIX)
    assert await bus.join() == []


# Who may be where.


def test_a_member_may_listen_under_its_name_in_the_directory_and_nowhere_else(place: Path) -> None:
    meeting, desk = Directory("desk"), f"{place}/aiobus/desk"
    assert meeting.admits(Member("a", f"ipc://{desk}/a.sock"))
    assert not meeting.admits(Member("a", f"ipc://{desk}/b.sock"))
    assert not meeting.admits(Member("a", f"ipc://{desk}/./a.sock"))
    assert not meeting.admits(Member("a", f"ipc://{place}/a.sock"))
    assert not meeting.admits(Member("a", f"{desk}/a.sock"))
    assert not meeting.admits(Member("a", "tcp://127.0.0.1:7555"))
    assert not meeting.admits(Member("../a", f"ipc://{desk}/../a.sock"))
    assert not meeting.admits(Member("", f"ipc://{desk}/.sock"))


async def test_the_sockets_of_the_meeting_are_known_by_their_addresses(
    a_bus: MakeBus, desk: Path
) -> None:
    bus = a_bus("a")
    await bus.join()
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(bus.path))
        assert bus.meeting.mine(bus.socket.getsockname())
        assert bus.meeting.mine(other.getpeername())
        assert not bus.meeting.mine(other.getsockname())
    assert bus.meeting.mine(os.fsencode(bus.path))


@pytest.mark.parametrize(
    "address", ["", b"", b"\0abstract", "a.sock", ("127.0.0.1", 7555), ("::1", 7, 0, 0), None, 3]
)
def test_no_other_address_is_of_the_meeting(place: Path, address: object) -> None:
    assert not Directory("desk").mine(address)


def test_neither_the_directory_nor_what_is_beside_it_is_a_socket_of_the_meeting(
    place: Path,
) -> None:
    for rest in ("", "/x/a.sock", "-2/a.sock", "/../a.sock"):
        assert not Directory("desk").mine(f"{place}/aiobus/desk{rest}")


# A fork while the lock is held.


async def test_the_descriptor_of_the_lock_is_known_while_it_is_held(
    a_bus: MakeBus, desk: Path
) -> None:
    bus = a_bus("a")
    seen: list[str] = []

    def bind(endpoint: str) -> str:
        seen.extend(os.readlink(f"/proc/self/fd/{lock}") for lock in bus.meeting.descriptors())
        return bus.bind(endpoint)

    await bus.meeting.join("a", bind, print)
    assert seen == [str(desk)]
    assert bus.meeting.descriptors() == set()


async def test_a_child_forked_meanwhile_does_not_keep_the_lock(a_bus: MakeBus, desk: Path) -> None:
    bus = a_bus("a")
    of_the_child: list[int] = []

    def bind(endpoint: str) -> str:
        # What a fork does to a descriptor; one at a time, so that the test's threads do not mind.
        of_the_child.extend(os.dup(lock) for lock in bus.meeting.descriptors())
        return bus.bind(endpoint)

    await bus.meeting.join("a", bind, print)
    try:
        with locked(desk):
            pass
    finally:
        os.close(of_the_child[0])


# Many at once.

JOIN = """
import asyncio, json, socket, sys
from aiobus.errors import NameInUse
from aiobus.transport.directory import Directory

async def main(name):
    meeting = Directory("desk")
    listener = socket.socket(socket.AF_UNIX)

    def bind(endpoint):
        listener.bind(endpoint.removeprefix("ipc://"))
        listener.listen()
        return endpoint

    print("ready", flush=True)
    sys.stdin.readline()
    try:
        known = [member.name for member in await meeting.join(name, bind, print)]
    except NameInUse:
        known = None
    print(json.dumps(known), flush=True)
    sys.stdin.readline()
    listener.close()
    await meeting.leave()

asyncio.run(main(sys.argv[1]))
"""


def test_of_17_processes_that_join_at_once_the_later_knows_the_earlier(desk: Path) -> None:
    names = [f"bus-{number}" for number in range(16)] + ["bus-7"]
    processes = [run(JOIN, name) for name in names]

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
from aiobus.transport.directory import Directory

async def main(name):
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(200):
        meeting = Directory("desk")
        with socket.socket(socket.AF_UNIX) as listener:
            def bind(endpoint):
                listener.bind(endpoint.removeprefix("ipc://"))
                listener.listen()
                return endpoint

            await meeting.join(name, bind, print)
            assert name + ".sock" in os.listdir(meeting.path)
        await meeting.leave()

asyncio.run(main(sys.argv[1]))
"""


def test_many_that_come_and_go_never_join_a_directory_that_is_gone(desk: Path) -> None:
    processes = [run(COME_AND_GO, name) for name in "abcd"]
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

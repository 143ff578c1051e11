"""In virtual time nothing leaves the process, and no refusal is lost. Each refused call works
outside of virtual time, in another thread at the same moment too.
"""

import _thread
import asyncio
import atexit
import gc
import multiprocessing
import os
import pty
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from aiobus import AsyncEventBus, Deadlock, Event, LeavesProcess, run_virtual
from aiobus import confinement as rules

ANY = ("127.0.0.1", 0)


class Calls:
    """Every refused call, each made with things that were there before."""

    def __init__(self) -> None:
        self.listener = socket.create_server(ANY)
        self.address = self.listener.getsockname()
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(ANY)
        self.here, self.there = socket.socketpair()
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(int).result()  # its thread is there
        self.zmq = zmq.Context()
        self.publisher = self.zmq.socket(zmq.PUB)
        self.publisher.linger = 0
        self.loop = asyncio.new_event_loop()
        self.futures = [self.loop.create_future() for _ in range(3)]
        for future in self.futures:
            future.add_done_callback(lambda future: None)
        self.folder = Path(tempfile.mkdtemp())
        self.fifo, self.file = self.folder / "gateway", self.folder / "orders"
        os.mkfifo(self.fifo)
        self.reader = os.open(self.fifo, os.O_RDWR)
        self.descriptors = [self.reader, *os.openpty()]
        self.device = os.ttyname(self.descriptors[-1])

    def close(self) -> None:
        shutil.rmtree(self.folder)
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.publisher.close()
        self.zmq.term()
        self.pool.shutdown()
        self.loop.close()
        for each in (self.listener, self.datagrams, self.here, self.there):
            each.close()

    def socket_connect(self) -> None:
        with socket.socket() as made:
            made.connect(self.address)

    def socket_connect_ex(self) -> None:
        with socket.socket() as made:
            assert made.connect_ex(self.address) == 0

    def socket_bind(self) -> None:
        with socket.socket() as made:
            made.bind(ANY)

    def socket_sendto(self) -> None:
        assert self.datagrams.sendto(b"x", self.datagrams.getsockname())

    def socket_sendmsg(self) -> None:
        assert self.here.sendmsg([b"x"])

    def socket_send(self) -> None:
        assert self.here.send(b"x")

    def socket_sendall(self) -> None:
        self.here.sendall(b"x")

    def socket_sendfile(self) -> None:
        with open(os.devnull, "rb") as empty:
            self.here.sendfile(empty)

    def socket_of_a_file(self) -> None:
        with self.here.makefile("wb") as file:
            file.write(b"x")

    def socket_getaddrinfo(self) -> None:
        assert socket.getaddrinfo("127.0.0.1", 80)

    def socket_getnameinfo(self) -> None:
        assert socket.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST)

    def socket_gethostbyname(self) -> None:
        assert socket.gethostbyname("127.0.0.1")

    def socket_gethostbyaddr(self) -> None:
        with suppress(OSError):
            socket.gethostbyaddr("127.0.0.1")

    def subprocess_run(self) -> None:
        subprocess.run(["true"], check=True)

    def os_system(self) -> None:
        assert os.system("true") == 0

    def os_posix_spawn(self) -> None:
        waited(os.posix_spawn("/bin/true", ["true"], {}))

    def os_spawn(self) -> None:
        assert os.spawnlp(os.P_WAIT, "true", "true") == 0

    def os_fork(self) -> None:
        if (child := os.fork()) == 0:
            os._exit(0)
        waited(child)

    def os_forkpty(self) -> None:
        child, descriptor = pty.fork()
        if child == 0:
            os._exit(0)
        waited(child)
        os.close(descriptor)

    def os_kill(self) -> None:
        os.kill(os.getpid(), 0)

    def os_killpg(self) -> None:
        os.killpg(os.getpgid(0), 0)

    def process_of_multiprocessing(self) -> None:
        process = multiprocessing.get_context("fork").Process(target=int)
        process.start()
        process.join()

    def process_that_multiprocessing_spawns(self) -> None:
        from multiprocessing.util import spawnv_passfds

        waited(spawnv_passfds(b"/bin/true", [b"true"], []))

    def process_pool(self) -> None:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            assert pool.submit(int).result() == 0

    def thread(self) -> None:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

    def thread_without_an_object(self) -> None:
        is_done = threading.Event()
        _thread.start_new_thread(is_done.set, ())
        assert is_done.wait(20)

    def thread_pool(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(int).result() == 0

    def thread_pool_that_is_there(self) -> None:
        assert self.pool.submit(int).result() == 0

    def loop_of_another_thread(self) -> None:
        self.loop.call_soon_threadsafe(int)

    def next_turn_of_another_loop(self) -> None:
        self.loop.call_soon(int)

    def timer_of_another_loop(self) -> None:
        self.loop.call_later(0, int)

    def task_of_another_loop(self) -> None:
        work = asyncio.sleep(0)
        try:
            self.loop.run_until_complete(self.loop.create_task(work))
        finally:
            work.close()

    def future_that_another_loop_awaits(self) -> None:  # as a queue has for each that waits
        self.futures.pop().set_result(None)

    def coroutine_for_another_loop(self) -> None:
        work = asyncio.sleep(0)
        try:
            asyncio.run_coroutine_threadsafe(work, self.loop)
            self.loop.run_until_complete(asyncio.sleep(0))
        finally:
            work.close()

    def fifo_that_is_opened(self) -> None:
        with open(self.fifo, "w") as opened:
            opened.write("x")

    def fifo_in_bytes_that_is_appended_to(self) -> None:
        with open(os.fsencode(self.fifo), "ab") as opened:
            opened.write(b"x")

    def fifo_of_pathlib(self) -> None:
        self.fifo.write_bytes(b"x")

    def fifo_of_os_open(self) -> None:
        os.close(os.open(self.fifo, os.O_WRONLY))

    def fifo_for_both_ways(self) -> None:
        os.close(os.open(os.fspath(self.fifo), os.O_RDWR))

    def fifo_behind_a_link(self) -> None:
        link = self.folder / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(self.fifo)
        link.write_text("x")

    def fifo_by_its_descriptor(self) -> None:
        Path(f"/dev/fd/{self.reader}").write_text("x")

    def device_that_is_opened(self) -> None:
        Path(self.device).write_text("x")

    if hasattr(signal, "pidfd_send_signal"):

        def signal_by_a_descriptor(self) -> None:
            process = os.pidfd_open(os.getpid())
            try:
                signal.pidfd_send_signal(process, 0)
            finally:
                os.close(process)

    def zmq_socket(self) -> None:
        self.zmq.socket(zmq.PUB).close()

    def zmq_bind(self) -> None:
        self.publisher.bind("tcp://127.0.0.1:*")

    def zmq_connect(self) -> None:
        self.publisher.connect("tcp://127.0.0.1:9")

    def zmq_send(self) -> None:
        self.publisher.send(b"x")

    def zmq_send_multipart(self) -> None:
        self.publisher.send_multipart([b"x", b"y"])


def leave(command: str = "true") -> None:
    """One of the calls, for tests in which it matters not which."""
    os.system(command)


def waited(child: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


CALLS = [name for name in vars(Calls) if not name.startswith("_") and name != "close"]

pytestmark = [
    # Python 3.12 and later warn of a fork beside threads.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.one_loop,
]


@pytest.fixture
def calls() -> Iterator[Calls]:
    made = Calls()
    yield made
    made.close()


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_leaves_the_process_is_refused_and_works_before_and_after(
    calls: Calls, name: str
) -> None:
    call: Callable[[], None] = getattr(calls, name)

    async def main() -> None:
        call()

    call()
    with pytest.raises(LeavesProcess) as caught:
        run_virtual(main())
    assert caught.value.caller == f"test_confinement.Calls.{name}"
    assert f"{caught.value.call} in test_confinement.Calls.{name} was refused" in str(caught.value)
    assert "MemoryNetwork" in str(caught.value)
    assert f"allow=('test_confinement.Calls.{name}',)" in str(caught.value)
    call()


class Elsewhere:
    """A thread that makes calls while another one is in virtual time."""

    def __init__(self) -> None:
        self.wanted: Callable[[], None] | None = None
        self.errors: list[BaseException] = []
        self._go, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._go.wait()
        try:
            if self.wanted is not None:
                self.wanted()
        except BaseException as error:  # noqa: BLE001
            self.errors.append(error)
        self._done.set()

    def call(self, wanted: Callable[[], None]) -> None:
        """Have it called, and wait until it was."""
        self.wanted = wanted
        self.end()

    def end(self) -> None:
        self._go.set()
        assert self._done.wait(20)
        self._thread.join()


@pytest.mark.parametrize("name", CALLS)
def test_at_the_same_time_the_call_works_in_another_thread(calls: Calls, name: str) -> None:
    elsewhere = Elsewhere()

    async def main() -> None:
        with pytest.raises(LeavesProcess):
            leave()
        elsewhere.call(getattr(calls, name))

    with pytest.raises(LeavesProcess, match=r"os\.system"):
        run_virtual(main())
    elsewhere.end()
    assert elsewhere.errors == []


def test_a_program_that_would_replace_this_one_is_refused() -> None:
    async def main() -> None:
        os.execv("/bin/true", ["true"])

    with pytest.raises(LeavesProcess, match=re.escape("os.exec('/bin/true')")):
        run_virtual(main())
    if (child := os.fork()) == 0:
        os.execv("/bin/true", ["true"])
    waited(child)


def test_a_tls_connection_that_was_there_before_sends_nothing() -> None:
    here, there = socket.socketpair()
    context = ssl.create_default_context()
    with here, there:
        here.setblocking(False)
        wrapped = context.wrap_socket(here, server_hostname="a", do_handshake_on_connect=False)
        for name in ("send", "sendall", "write"):

            async def main(name: str = name) -> None:
                getattr(wrapped, name)(b"x")

            with pytest.raises(LeavesProcess, match="SSLSocket"):
                run_virtual(main())
            with pytest.raises(ssl.SSLWantReadError):  # it gets as far as to the handshake
                getattr(wrapped, name)(b"x")
        wrapped.close()


@pytest.mark.parametrize(
    "work",
    [
        lambda: asyncio.to_thread(int),
        lambda: asyncio.get_running_loop().run_in_executor(None, int),
        lambda: asyncio.open_connection("127.0.0.1", 9),
        lambda: asyncio.start_server(print, "127.0.0.1"),
        lambda: asyncio.create_subprocess_exec("true"),
        lambda: asyncio.create_subprocess_shell("true"),
        lambda: asyncio.get_running_loop().getaddrinfo("127.0.0.1", 9),
    ],
    ids=["to_thread", "executor", "connection", "server", "exec", "shell", "getaddrinfo"],
)
def test_what_the_loop_itself_does_not_have_ends_the_run_as_well(work: Callable[[], Any]) -> None:
    async def main() -> None:
        with suppress(Exception):
            await work()
        await asyncio.sleep(1)
        reached.append(1)

    reached: list[int] = []
    with pytest.raises(LeavesProcess, match=r"loop\.\w+\(\) was refused: a VirtualLoop has no"):
        run_virtual(main())
    assert not reached

    async def usual() -> None:
        with suppress(OSError):  # port 9 refuses
            result = await work()
            if isinstance(result, asyncio.AbstractServer):
                result.close()
            elif isinstance(result, asyncio.subprocess.Process):
                await result.wait()

    asyncio.run(usual())


@pytest.mark.parametrize("on_error", ["log", "raise"])
@pytest.mark.parametrize("url", ["ipc", "tcp"], indirect=True)
def test_a_bus_with_sockets_is_refused_by_name_and_works_outside(url: str, on_error: Any) -> None:
    async def main() -> None:
        async with AsyncEventBus(url, name="gateway", on_error=on_error):
            pass

    with pytest.raises(LeavesProcess) as caught:
        run_virtual(main())
    assert caught.value.call == "AsyncEventBus.start() of 'gateway' on ipc:// or tcp://"
    asyncio.run(main())  # nothing was left open, and so the name is free


# The refusal is not lost.


@pytest.mark.parametrize("on_error", ["log", "raise"])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_refusal_in_a_handler_ends_the_run_whatever_on_error_says(
    on_error: Any, concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    def send_order(event: Event) -> None:
        socket.create_connection(("127.0.0.1", 9))

    async def main() -> str:
        async with AsyncEventBus(on_error=on_error) as bus:
            await bus.subscribe("ORDER", send_order, concurrency=concurrency)
            await bus.publish(Event("ORDER", 1))
            await asyncio.sleep(60)
        return "all is well"

    with pytest.raises(LeavesProcess, match=r"socket\.getaddrinfo\('127\.0\.0\.1'\)") as caught:
        run_virtual(main())
    assert caught.value.caller.endswith("send_order")


def test_a_refusal_that_is_caught_ends_the_run_at_the_next_turn_of_the_loop() -> None:
    async def main() -> None:
        while True:  # a strategy that tries again for ever
            with suppress(Exception):
                socket.create_connection(("127.0.0.1", 9))
            turns.append(1)
            await asyncio.sleep(1)

    turns: list[int] = []
    with pytest.raises(LeavesProcess):
        run_virtual(main())
    assert turns == [1]


def test_a_refusal_that_is_caught_just_before_the_end_is_raised_all_the_same() -> None:
    async def main() -> str:
        with suppress(Exception):
            leave()
        return "all is well"

    with pytest.raises(LeavesProcess, match=r"os\.system"):
        run_virtual(main())


def test_an_error_that_a_refusal_led_to_is_its_cause_and_does_not_hide_it() -> None:
    async def main() -> None:
        try:
            leave()
        except Exception as error:
            raise ValueError("no price") from error

    with pytest.raises(LeavesProcess) as caught:
        run_virtual(main())
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("ending", [SystemExit(0), asyncio.CancelledError()])
def test_a_program_that_ends_itself_after_a_refusal_does_not_hide_it(ending: BaseException) -> None:
    async def main() -> None:
        with suppress(Exception):
            leave()
        raise ending

    with pytest.raises(LeavesProcess):
        run_virtual(main())


def test_a_caller_that_is_installed_as_a_library_is_named(tmp_path: Path) -> None:
    code = "import os\nasync def main():\n    os.system('true')\n"
    package = tmp_path / "site-packages" / "strategies.py"
    names = {"__name__": "strategies"}
    exec(compile(code, str(package), "exec"), names)
    with pytest.raises(LeavesProcess) as caught, ThreadPoolExecutor(1) as pool:
        pool.submit(run_virtual, names["main"]).result()  # no frame of this module is below
    assert caught.value.caller == "strategies.main"


def test_the_first_of_several_refusals_is_the_one_that_is_raised() -> None:
    async def main() -> None:
        for command in ("first", "second"):
            with suppress(Exception):
                leave(command)

    with pytest.raises(LeavesProcess, match="'first'"):
        run_virtual(main())


@pytest.mark.parametrize("turns", range(6))
def test_a_run_that_ends_by_itself_meanwhile_ends_with_the_refusal_and_cleans_up(
    turns: int,
) -> None:
    async def lingers() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            cleaned.append(1)

    async def main() -> None:
        linger = asyncio.create_task(lingers())
        await asyncio.sleep(0)
        with suppress(Exception):
            leave()
        for _ in range(turns):
            await asyncio.sleep(0)
        assert not linger.done()

    cleaned: list[int] = []
    with pytest.raises(LeavesProcess):
        run_virtual(main())
    assert cleaned == [1]


def test_after_a_refusal_tasks_are_cancelled_and_clean_up() -> None:
    async def main() -> None:
        try:
            with suppress(Exception):
                leave()
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(1)
            cleaned.append(1)

    cleaned: list[int] = []
    with pytest.raises(LeavesProcess):
        run_virtual(main())
    assert cleaned == [1]


# What is let through.


def report() -> None:
    with socket.socket() as made:
        made.bind(ANY)
        made.listen()
        with socket.socket() as other:
            other.connect(made.getsockname())
            other.sendall(b"x")


class Mailer:
    async def send(self) -> None:
        await asyncio.sleep(0)
        report()


async def mail() -> str:
    for _ in range(3):
        await Mailer().send()
    return "sent"


@pytest.mark.parametrize("caller", ["report", "Mailer.send", "mail"])
def test_a_caller_that_is_named_is_let_through_and_printed_once_for_each_call(
    caller: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"test_confinement.{caller}"
    assert run_virtual(mail(), allow=(name,)) == "sent"
    lines = capsys.readouterr().err.splitlines()
    expected = [
        "socket.bind(('127.0.0.1', 0))",
        "socket.connect(('127.0.0.1', ",
        "socket.sendall()",
    ]
    assert len(lines) == len(expected)
    for line, call in zip(lines, expected, strict=True):
        assert line.startswith(f"virtual time: {name} is let through to {call}")


def test_another_caller_is_refused_beside_one_that_is_let_through() -> None:
    async def main() -> None:
        report()
        leave()

    with pytest.raises(LeavesProcess, match=r"os\.system"):
        run_virtual(main(), allow=("test_confinement.report",))


@pytest.mark.parametrize("allow", ["test_confinement.report", [1], None])
def test_allow_that_names_no_callers_is_refused_with_its_value(allow: Any) -> None:
    main = mail()
    with pytest.raises(TypeError, match=re.escape(f"allow={allow!r}: a tuple of callers")):
        run_virtual(main, allow=allow)


# What runs after the end.


@contextmanager
def nothing_comes() -> Iterator[tuple[str, int]]:
    """The address of a gateway to which no order comes."""
    with socket.create_server(ANY) as gateway:
        gateway.setblocking(False)
        yield gateway.getsockname()
        gc.collect()
        with pytest.raises(BlockingIOError):
            gateway.accept()


async def ignores_its_end() -> None:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()


def test_the_clean_up_of_a_task_that_ignores_its_end_is_confined() -> None:
    async def sends_an_order() -> None:
        try:
            await ignores_its_end()
        finally:
            socket.create_connection(gateway)

    async def main() -> None:
        tasks.append(asyncio.create_task(sends_an_order()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    with nothing_comes() as gateway:
        with pytest.raises(LeavesProcess):
            run_virtual(main())
        tasks.clear()


def test_a_task_that_waits_in_its_clean_up_never_goes_on() -> None:
    async def sends_an_order() -> None:
        try:
            await ignores_its_end()
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                socket.create_connection(gateway)

    async def main() -> None:
        tasks.append(asyncio.create_task(sends_an_order()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    with nothing_comes() as gateway:
        with pytest.raises(Deadlock):
            run_virtual(main())
        tasks.clear()


def test_what_is_to_run_at_the_end_of_the_process_is_confined_then() -> None:
    program = """
import atexit, socket, sys
from aiobus import run_virtual

async def main():
    atexit.register(socket.create_connection, ("127.0.0.1", int(sys.argv[1])))

run_virtual(main)
atexit.register(print, "the end")
"""
    with nothing_comes() as (_, port):
        command = [sys.executable, "-c", program, str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "the end\n"
    assert "errors.LeavesProcess: socket.getaddrinfo" in done.stderr


# What stays in the machine, and what is as it was.


def test_a_socket_file_is_refused_before_the_system_refuses_it(folder: Path) -> None:
    path = folder / "socket"

    async def main() -> None:
        with suppress(OSError):
            path.write_text("x")

    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        with pytest.raises(LeavesProcess, match=re.escape(f"open({str(path)!r}) in")):
            run_virtual(main())


def test_reading_and_what_goes_to_nothing_but_a_person_are_not_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def read(name: str) -> bytes:
        with Path(name).open("rb") as opened:
            return opened.read(1)

    def append(name: str) -> None:
        Path(name).open("a").close()

    async def main() -> None:
        os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
        assert read("/dev/urandom")
        for name in ("/dev/null", "/dev/zero", "/dev/stdout"):
            append(name)

    run_virtual(main())


def test_a_caller_that_is_named_may_write_to_a_fifo(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        calls.fifo_of_pathlib()

    run_virtual(main(), allow=("test_confinement.Calls.fifo_of_pathlib",))
    assert f"is let through to open({str(calls.fifo)!r})" in capsys.readouterr().err
    assert os.read(calls.reader, 10) == b"x"


def test_files_and_databases_that_are_opened_for_writing_are_noted_once(tmp_path: Path) -> None:
    import sqlite3

    names = [str(tmp_path / name) for name in ("fills.txt", "more", "fills.db")]
    noted = rules.Confinement()

    def write() -> None:
        for _ in range(2):
            Path(names[0]).write_text("1\n")
            Path(names[0]).read_text()
            os.close(os.open(names[1], os.O_CREAT | os.O_WRONLY))
            sqlite3.connect(names[2]).close()
            sqlite3.connect(f"file:{names[2]}?mode=ro", uri=True).close()
            sqlite3.connect(":memory:").close()

    with rules.confined(noted):
        write()
    assert noted.written == names


def test_of_a_million_files_the_first_are_noted(tmp_path: Path) -> None:
    noted = rules.Confinement()
    with rules.confined(noted):
        for number in range(rules.MOST_WRITTEN + 10):
            (tmp_path / str(number)).touch()
    assert noted.written == [str(tmp_path / str(number)) for number in range(rules.MOST_WRITTEN)]


def test_files_and_databases_are_not_refused(tmp_path: Path) -> None:
    import sqlite3

    async def main() -> int:
        (tmp_path / "fills.txt").write_text("1\n")
        with sqlite3.connect(tmp_path / "fills.db") as made:
            made.execute("CREATE TABLE fills (seq)")
        made.close()
        return len(os.listdir(tmp_path))

    assert run_virtual(main()) == 2


@contextmanager
def threads_in_virtual_time(number: int) -> Iterator[None]:
    """While the body runs, so many threads are in virtual time."""
    ready, over = threading.Barrier(number + 1), threading.Event()

    async def main() -> None:
        ready.wait(20)
        over.wait(20)

    threads = [threading.Thread(target=lambda: run_virtual(main())) for _ in range(number)]
    for thread in threads:
        thread.start()
    ready.wait(20)
    yield
    over.set()
    for thread in threads:
        thread.join()


PATCHED: list[tuple[Any, str]] = [
    *((socket.socket, name) for name in ("send", "sendall", "sendfile")),
    *((ssl.SSLSocket, name) for name in ("send", "sendall", "write")),
    (threading.Thread, "start"),
    (_thread, "start_new_thread"),
    *((zmq.Socket, name) for name in ("__init__", "bind", "connect", "send")),
    (ThreadPoolExecutor, "submit"),
    (ProcessPoolExecutor, "submit"),
    (asyncio, "run_coroutine_threadsafe"),
    *((asyncio.BaseEventLoop, f"call_{name}") for name in ("soon", "at", "soon_threadsafe")),
    (atexit, "register"),
]


def test_once_no_thread_is_in_virtual_time_everything_is_what_it_was() -> None:
    def found() -> list[Any]:
        return [(vars(owner).get(name), getattr(owner, name)) for owner, name in PATCHED]

    before = found()
    with threads_in_virtual_time(3):
        assert not any(now in before for now in found())
    assert found() == before


def test_a_child_that_another_thread_forks_is_not_confined() -> None:
    with threads_in_virtual_time(1):
        if (child := os.fork()) == 0:
            is_free = not rules._confined and socket.socket.send is socket.SocketType.send
            os._exit(0 if is_free and os.system("true") == 0 else 1)
        waited(child)


def test_a_run_within_a_run_is_confined_by_itself() -> None:
    async def inner() -> None:
        leave()

    async def main() -> str:
        with pytest.raises(LeavesProcess, match=r"os\.system"):
            run_virtual(inner())
        with pytest.raises(LeavesProcess, match=r"Thread\.start"):
            threading.Thread(target=int).start()
        return "all is well"

    with pytest.raises(LeavesProcess, match=r"Thread\.start"):
        run_virtual(main())


def test_every_event_that_is_refused_is_one_of_python() -> None:
    """A name that no Python raises would refuse nothing."""
    seen: set[str] = set()
    code = "\n".join(
        [
            "import sys",
            "seen = set()",
            "sys.addaudithook(lambda event, args: seen.add(event))",
            f"sys.path[:0] = {sys.path!r}",
            "import test_confinement",
            "calls = test_confinement.Calls()",
            "for name in test_confinement.CALLS: getattr(calls, name)()",
            "calls.close()",
            "import os",
            "read, write = os.pipe()",
            "if os.fork() == 0:",
            "    tell = lambda event, args: event == 'os.exec' and os.write(write, b'x')",
            "    sys.addaudithook(tell)",
            "    os.execv('/bin/true', ['true'])",
            "os.wait()",
            "assert os.read(read, 1) == b'x'",
            "print(*sorted(seen))",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=50
    )
    seen.update(done.stdout.split(), {"os.exec"})
    assert set(rules.EVENTS) <= seen


def test_outside_of_virtual_time_the_hook_looks_at_one_dict_and_returns() -> None:
    async def main() -> None:
        pass

    run_virtual(main())
    calls: list[str] = []

    def trace(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            calls.append(frame.f_code.co_qualname)

    sys.setprofile(trace)
    try:
        rules._audit("socket.connect", (None, ANY))
    finally:
        sys.setprofile(None)
    assert calls == ["_audit"]


def test_time_that_passes_in_the_machine_is_not_refused() -> None:
    async def main() -> None:
        time.sleep(0)  # noqa: ASYNC251

    run_virtual(main())


def test_a_child_that_is_let_through_to_fork_goes_on_and_comes_to_an_end() -> None:
    async def main() -> bool:
        return os.fork() == 0

    if run_virtual(main(), allow=(f"{__name__}.{main.__qualname__}",)):
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7

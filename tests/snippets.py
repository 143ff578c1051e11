"""The snippets of a page, run as its reader runs them: in one folder, from the first to the last.

A fence says what becomes of its block:

| fence | what is done |
| --- | --- |
| `python name.py`, `toml name.toml` ... | saved under this name |
| `python cell` | run in a notebook: all cells of a page share one loop and one namespace |
| `python theirs` | code of another library: it has to compile |
| `sh` | run by bash to its end; it has to succeed |
| `sh terminal NAME` | begun by bash in a terminal of its own, which gets Ctrl-C at the end |
| `sh install` | `pip install` alone, which is not run |
| `text` | what the block before it prints. A file that is followed by one is run |
| `text NAME` | what the terminal NAME prints next; all, after Ctrl-C, if it begins with `^C` |
| `sh ... at HOST` | the same on a host of the page, a folder of this name. `scp` copies to it |

In a `text`, `...` is any text within a line, a line of `...` is any number of lines, the id of an
event is any id and a time any time. Log lines of the level INFO are left out. A block in an HTML
comment is run as well: it is what the reader has already, or does by hand. An address 10.0.0.N is
one of this machine, and each port of it a free one. A public key that a page shows when a command
makes it stands for the key that was made.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from time import monotonic

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"^( *)```(\w+)(?: (?!at )([^\n`]+?))?(?: at ([\w-]+))?\n(.*?)^\1```$",
    re.DOTALL | re.MULTILINE,
)
REMOTE = re.compile(r"\b10\.0\.0\.\d+(?::(\d+))?")
MADE = re.compile(r"^the public key of (\S+): '(.{40})'$", re.MULTILINE)
INFO = re.compile(r"[\d-]{10} [\d:,]{12} INFO aiobus\.")
SECONDS = 40.0
"""For one block, or for what a terminal has to print."""

PORT = 8765
"""The port of the pages. A session replaces it by one that is free."""

LOOP_SCOPE = "asyncio_default_fixture_loop_scope=function"
"""Unset, pytest-asyncio warns of it."""

SITE = """
import os, sys
from aiobus.discovery import directory

directory.TMP = {place!r}  # in the place of /tmp, so `ipc://desk` is private to this run


def note(event, arguments):
    if event == "exec":
        file = getattr(arguments[0], "co_filename", "")
        if file.startswith({folder!r}):
            with open({ran!r}, "a") as lines:
                lines.write(os.path.basename(file) + chr(10))


sys.addaudithook(note)
"""
"""What each interpreter begins with: it notes which files of the page run in it."""

SCP = """#!/bin/sh
# Of a host of the page, which is a folder: whole files, as if each was sent at once.
for to; do :; done
for from; do
    case $from in -*|*:*) continue;; esac
    cp -p "$from" "$HOSTS/${to%%:*}/${to#*:}.new"
    mv "$HOSTS/${to%%:*}/${to#*:}.new" "$HOSTS/${to%%:*}/${to#*:}$(basename "$from")"
done
"""

CELLS = """
import ast, asyncio, inspect, sys


async def notebook(cells):
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        print(f"\\n[cell {number}]", flush=True)
        tree = ast.parse(cell)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        parts = [(tree, "exec")] + ([(ast.Expression(last.value), "eval")] if last else [])
        for part, mode in parts:
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(part, f"<cell {number}>", mode, flags=flags)
            shown = eval(code, names)
            if code.co_flags & inspect.CO_COROUTINE:
                shown = await shown
            if mode == "eval" and shown is not None:
                print(repr(shown), flush=True)


asyncio.run(notebook(%r))
"""
"""A notebook: each cell runs on the loop that runs, may `await`, and shows its last expression."""


VARYING = re.compile(
    r"(?P<id>@\w{10}\\\.\d+)"
    r"|(?P<time>\d{4}\\-\d\d\\-\d\dT[\d:]+(\\\.\d+)?\\[+-][\d:]+)"
)
SHAPES = {"id": r"@\w+\.\d+", "time": r"[\d-]+T[\d:.]+[+-][\d:]+"}
"""What is another in each run, as `re.escape` leaves it. A page shows a real one; any matches."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    info: str
    text: str
    line: int
    host: str = ""

    @property
    def file(self) -> str | None:
        """The name under which it is saved."""
        return self.info if re.fullmatch(r"[\w/-]+(\.\w+)+", self.info) else None


def blocks(page: Path, port: int = PORT) -> list[Block]:
    """The blocks of a page, those in comments as well, with this port in the place of 8765."""
    text = re.sub(rf"\b{PORT}\b", str(port), page.read_text())
    found = []
    for match in FENCE.finditer(text):
        indent, language, info, host, body = match.groups("")
        lines = (line.removeprefix(indent) for line in body.splitlines(keepends=True))
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(language, info.strip(), "".join(lines), line, host))
    return found


def pattern(expected: str) -> str:
    """A regular expression for what a `text` block shows."""
    parts = []
    for line in expected.splitlines():
        if line == "...":
            parts.append(r"(?:[^\n]*\n)*?")
            continue
        shown = re.escape(line.rstrip()).replace(r"\.\.\.", r"[^\n]*?")
        parts.append(VARYING.sub(lambda found: SHAPES[found.lastgroup or ""], shown))
        parts.append(r"[^\S\n]*\n")
    return "".join(parts)


def free_port() -> int:
    """A port of this machine that nothing listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Terminal:
    """One command in a terminal of its own."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            ["bash", "-euc", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.printed: list[str] = []
        self.read = 0
        self.reader = Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not INFO.match(line):
                self.printed.append(line)

    def prints(self, expected: str, where: str) -> None:
        """Wait until it has printed this, behind what it was seen to print before."""
        wanted, until = re.compile(pattern(expected)), monotonic() + SECONDS
        while True:
            open, text = self.reader.is_alive(), "".join(self.printed)[self.read :]
            if found := wanted.match(text):
                self.read += found.end()
                return
            goes_on = open and monotonic() < until
            assert goes_on, f"{where}: expected\n{expected}\ngot\n{text}"
            self.reader.join(0.02)

    def ends(self, where: str, *, by: signal.Signals | None = None) -> str:
        """It ends well, by itself or by this signal. What it printed at last."""
        if by is not None and self.process.poll() is None:
            os.killpg(self.process.pid, by)
        try:
            status = self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{where}: does not end\n{''.join(self.printed)}") from None
        self.reader.join(SECONDS)
        text = "".join(self.printed)
        # A page may kill what runs in a terminal. Ctrl-C is -2 of a process that has no handler.
        allowed = {0} if by is None else {0, 128 + by, -by, -signal.SIGKILL}
        assert status in allowed, f"{where}: {status}\n{text}"
        return text[self.read :]

    def kill(self) -> None:
        """Whatever became of it, nothing of it is left."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def here(ports: "defaultdict[str, int]", address: re.Match[str]) -> str:
    """An address of this machine in the place of one of the page."""
    return f"127.0.0.1:{ports[address[0]]}" if address[1] else "127.0.0.1"


class Session:
    """A reader with one page: a folder for its files, and terminals."""

    def __init__(self, page: Path, place: Path) -> None:
        self.page = page
        ports: defaultdict[str, int] = defaultdict(free_port)
        self.blocks = [
            replace(each, text=REMOTE.sub(partial(here, ports), each.text))
            for each in blocks(page, free_port())
        ]
        self.keys: dict[str, str] = {}
        """For each public key of the page, the one that was made."""
        self.folder = place / "page"
        self.folder.mkdir()
        self.ran = place / "ran"
        self.ran.touch()
        self.terminals: dict[str, Terminal] = {}
        self.cells = self._notebook()
        self.environment = self._environment(place)

    def _environment(self, place: Path) -> dict[str, str]:
        """One in which `python`, `pytest` and `aiobus` are those of this interpreter."""
        site, binaries = place / "site", place / "bin"
        for folder in (site, binaries, place / "tmp"):
            folder.mkdir()
        code = SITE.format(place=str(place / "tmp"), folder=str(self.folder), ran=str(self.ran))
        (site / "sitecustomize.py").write_text(code)
        for name, command in (("python", ""), ("pytest", " -m pytest"), ("aiobus", " -m aiobus")):
            script = binaries / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
            script.chmod(0o755)
        (binaries / "scp").write_text(SCP)
        (binaries / "scp").chmod(0o755)
        inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        paths = [str(site), *map(os.path.abspath, inherited)]
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ("AIOBUS_URL", "AIOBUS_KEYRING")
        }
        return kept | {
            "HOSTS": str(self.folder),
            "PATH": os.pathsep.join([str(binaries), *filter(None, [os.environ.get("PATH")])]),
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "error",
            "PYTEST_ADDOPTS": f"-p no:cacheprovider -q -o {LOOP_SCOPE}",
            "TMPDIR": str(place / "tmp"),
            "COLUMNS": "100",
        }

    def where(self, block: Block) -> str:
        """The place of a block."""
        return f"{self.page.name}:{block.line}"

    def run(self) -> None:
        """Do what the page tells, from its first block to its last."""
        with ExitStack() as stack:
            stack.callback(lambda: [terminal.kill() for terminal in self.terminals.values()])
            last: Block | None = None
            for block in self.blocks:
                block = replace(block, text=self._with_keys(block.text))
                self._do(block, last)
                last = block
            if last is not None:
                self._do(Block("", "", "", last.line), last)
            for name, terminal in reversed(self.terminals.items()):
                rest = terminal.ends(f"{self.page.name}, terminal {name}", by=signal.SIGINT)
                assert "Traceback" not in rest, rest

    def _do(self, block: Block, last: Block | None) -> None:
        is_shown = block.language == "text" and not block.info
        if block.info == "install":
            assert re.fullmatch(r"(pip install [^\n;&|]+\n)+", block.text), self.where(block)
        if last is not None and last.language == "sh" and not last.info and not is_shown:
            self._call(last, None)
        elif last is not None and last.info == "cell" and not is_shown:
            next(self.cells)
        if block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.info == "theirs":
            compile(block.text, self.where(block), "exec")
        elif block.info.startswith("terminal "):
            _, name = block.info.split()
            if name in self.terminals:
                assert self.terminals[name].process.poll() is not None, self.where(block)
                self.terminals[name].kill()
            folder = self.folder / block.host
            folder.mkdir(exist_ok=True)
            self.terminals[name] = Terminal(block.text, folder, self.environment)
        elif block.language == "text" and block.info and block.text.startswith("^C\n"):
            rest = self.terminals[block.info].ends(self.where(block), by=signal.SIGINT)
            self._compare(block, rest, "^C\n")
        elif block.language == "text" and block.info:
            self.terminals[block.info].prints(block.text, self.where(block))
        elif block.language == "text":
            assert last is not None, self.where(block)
            self._prints(last, block)

    def _prints(self, last: Block, block: Block) -> None:
        """What is shown below a block is what it prints."""
        if last.info == "cell":
            self._compare(block, next(self.cells))
        elif last.info.startswith("terminal "):
            self.terminals[last.info.split()[1]].prints(block.text, self.where(block))
        else:
            self._call(last, block)

    def _call(self, block: Block, shown: Block | None) -> None:
        """Run a file or commands to their end, and compare what they print."""
        command = block.text if block.language == "sh" else f"python {block.file}"
        printed = self.shell(command, self.where(block), block.host)
        if shown is None:
            assert "Traceback" not in printed, f"{self.where(block)}:\n{printed}"
        else:
            self._compare(shown, printed)

    def shell(self, command: str, where: str = "", host: str = "") -> str:
        """What these commands print; they have to succeed."""
        folder = self.folder / host
        folder.mkdir(exist_ok=True)
        terminal = Terminal(command, folder, self.environment)
        try:
            return terminal.ends(where or command)
        finally:
            terminal.kill()

    def _compare(self, shown: Block, printed: str, head: str = "") -> None:
        made = dict(MADE.findall(printed))
        self.keys |= {key: made[name] for name, key in MADE.findall(shown.text) if name in made}
        text = self._with_keys(shown.text.removeprefix(head))
        assert ("Traceback" in printed) == ("Traceback" in text), printed
        assert re.fullmatch(pattern(text), printed), (
            f"{self.where(shown)}: expected\n{text}\ngot\n{printed}"
        )

    def _with_keys(self, text: str) -> str:
        for key, made in self.keys.items():
            text = text.replace(key, made)
        return text

    def _notebook(self) -> Iterator[str]:
        """What each cell prints, in order."""
        # Begun with the first cell: what stands above it on the page is there already.
        cells = [block.text for block in self.blocks if block.info == "cell"]
        script = self.folder.parent / "cells.py"
        script.write_text(CELLS % (cells,))
        printed = self.shell(f"python {script}", f"the cells of {self.page.name}")
        parts = re.split(r"^\[cell \d+\]\n", printed, flags=re.MULTILINE)[1:]
        assert len(parts) == len(cells), printed
        for part in parts:
            yield part.removesuffix("\n") if part.endswith("\n\n") or part == "\n" else part

    def left_out(self) -> set[str]:
        """The Python files of the page that no interpreter has run."""
        files = {block.file for block in self.blocks if block.language == "python" and block.file}
        return {name for name in files if Path(name).name not in self.ran.read_text().split()}

"""The command `aiobus` as a process, beside the loop of a test."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

from aiobus.__main__ import main

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "aiobus")
ENVIRONMENT = {
    **{
        name: value
        for name, value in os.environ.items()
        if name not in ("NO_COLOR", "AIOBUS_URL", "AIOBUS_KEYRING")
    },
    "PYTHONPATH": str(ROOT),
    "TERM": "xterm",
    "COLUMNS": "100",
}


class Running:
    """A command that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """The next line of its output; "" at the end."""
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def json(self) -> Any:
        return json.loads(await self.line())

    async def says(self, text: str) -> str:
        """The next line of stderr with this text. Fails if it ends before."""
        assert self.process.stderr is not None
        heard = []
        async for line in self.process.stderr:
            heard.append(line.decode().rstrip("\n"))
            if text in heard[-1]:
                return heard[-1]
        raise AssertionError(f"{text!r} was not said, but {heard}")

    async def end(self, how: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
        """Send a signal; return the exit code, and the rest of stdout and of stderr."""
        self.process.send_signal(how)
        return await self.ended()

    async def ended(self) -> tuple[int, str, str]:
        out, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), errors.decode()


@asynccontextmanager
async def running(*arguments: str, **options: Any) -> AsyncIterator[Running]:
    """`aiobus` with these arguments. It has ended at the end."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=pipe, stderr=pipe, cwd=ROOT, env=ENVIRONMENT, **options
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ran(*arguments: str, given: bytes | None = None) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of `aiobus` with these arguments."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT, env=ENVIRONMENT
    )
    out, errors = await process.communicate(given)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


def called(*arguments: object) -> tuple[int, str, str]:
    """The same of a command that is called in this process, which is sooner done."""
    out, errors = (TextIOWrapper(BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(errors):
        code = main([str(each) for each in arguments])
    return code, *(each.buffer.getvalue().decode() for each in (out, errors))

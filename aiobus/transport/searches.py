"""The looks of one bus at endpoints: whether processes listen there.

Owns the tasks that look, so that each is ended with the bus and a failure is logged. Must not know
what a look is good for.
"""

import asyncio
import logging
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

from aiobus.wire import Who

__all__ = ["Searches"]

log = logging.getLogger("aiobus.transport")


class Searches:
    """The tasks of the bus `me` that look for peers."""

    def __init__(self, me: Who) -> None:
        self._me = me
        self._context = Context()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, search: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run `search` in a task of its own."""
        name = f"aiobus {self._me.name} search"
        task = asyncio.get_running_loop().create_task(search, name=name, context=self._context)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)
        return task

    def _on_end(self, search: "asyncio.Task[None]") -> None:
        self._tasks.discard(search)
        if not search.cancelled() and (error := search.exception()) is not None:
            log.error("looking for peers failed", exc_info=error)

    def end(self) -> None:
        """Look for no peer any more. Never waits."""
        for task in self._tasks:
            task.cancel()

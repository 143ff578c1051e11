"""The tasks that a bot has made, and which of them have failed without anything noticing.

Owns which tasks those are. Must not know what follows from them.
"""

import asyncio
import logging
import sys
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from aiobus.strand import is_package

__all__ = ["BotTasks"]

LOOK_SECONDS = 1.0
"""How often all tasks are looked at: that of ten thousand takes milliseconds."""
UNASKED_SECONDS = 5.0
"""After which a task that has failed is named, though something may still await it."""

log = logging.getLogger("aiobus.bot")

Task = asyncio.Task[Any]


class BotTasks:
    """The tasks that the bot has made, in whatever code of it, and not those of this package."""

    def __init__(self) -> None:
        self._made: WeakSet[Task] = WeakSet()
        self._failed: WeakKeyDictionary[Task, float] = WeakKeyDictionary()
        """When each was seen first that has failed without being asked for that."""
        self._named: WeakSet[Task] = WeakSet()
        self._looked = -LOOK_SECONDS

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on, know the tasks that are made. (A task factory would do, but a recording with
        `attach=` needs that one.)
        """
        make = loop.create_task

        def create_task(*given: Any, **options: Any) -> Task:
            task: Task = make(*given, **options)
            if not _is_packages():
                self._made.add(task)
            return task

        loop.create_task = create_task  # type: ignore[method-assign]

    @property
    def alive(self) -> list[Task]:
        """Those that have not ended."""
        return [task for task in self._made if not task.done()]

    @property
    def unasked(self) -> list[Task]:
        """Those that have failed, and whose exception nothing has asked for so far."""
        return [
            task
            for task in self._made
            if task.done() and not task.cancelled() and task._log_traceback
        ]

    def name_unasked(self) -> None:
        """Log each that has failed a while ago. It is no failure of the bot yet: something has a
        reference to it, and may await it later.
        """
        now = asyncio.get_running_loop().time()
        if now < self._looked + LOOK_SECONDS:
            return
        self._looked = now
        for task in self.unasked:
            since = self._failed.setdefault(task, now)
            if now - since >= UNASKED_SECONDS and task not in self._named:
                self._named.add(task)
                log.error("%r has failed, and nothing has awaited it so far", task)


def _is_packages() -> bool:
    """True if code of this package makes the task, by itself or by asyncio."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("asyncio."):
        frame = frame.f_back
    return frame is not None and is_package(frame)

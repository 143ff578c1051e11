"""Tasks that wait to be woken.

Owns the one way in which anything here waits for something to change: a waiter is woken and looks
again, it is never given anything. So a waiter that is cancelled, even after it was woken, takes
nothing with it.
"""

import asyncio

__all__ = ["Waiters"]


class Waiters:
    """Whoever waits for one kind of change. Truth: somebody does."""

    __slots__ = ("futures",)

    def __init__(self) -> None:
        self.futures: set[asyncio.Future[None]] = set()
        """One for each that waits. Asking for them costs half of asking whether somebody does."""

    def __bool__(self) -> bool:
        return bool(self.futures)

    async def wait(self) -> None:
        """Return at the next `wake`; then look whether it was for you."""
        future = asyncio.get_running_loop().create_future()
        self.futures.add(future)
        try:
            await future
        finally:
            self.futures.discard(future)

    def wake(self) -> None:
        """Let everybody look again."""
        for future in self.futures:
            if not future.done():
                future.set_result(None)

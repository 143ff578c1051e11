"""A recorded session once more: through the same coroutines, and never to a gateway."""

from aiobus.replay.transport import Progress, Replay

__all__ = ["Progress", "Replay"]

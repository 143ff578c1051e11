"""A recorded session once more: through the same coroutines, and never to a gateway."""

from aiobus.replay.republish import republish
from aiobus.replay.transport import Progress, Replay
from aiobus.replay.what_if import Comparison, Decision, Difference, what_if

__all__ = [
    "Comparison", "Decision", "Difference", "Progress", "Replay", "republish", "what_if",
]  # fmt: skip

"""Waiting for space in "block" inboxes.

Owns the one place where a publisher waits for a subscriber. A wait that would close a circle is not
waited, so no policy and no size of inbox can make handlers that publish to each other stop for
ever.
"""

import asyncio
import logging
from collections.abc import Iterable

from aiobus.delivery import BackpressureGate, closes_circle, holding, waiting

__all__ = ["wait_for_space"]

WARN_SECONDS = 1.0

log = logging.getLogger("aiobus.backpressure")


async def wait_for_space(gates: Iterable[BackpressureGate]) -> None:
    """Wait until none of `gates` holds more than its maxsize. Cancelling it stops the waiting and
    nothing else.

    While a publisher waits, the handlers and stream bodies it is part of cannot go on. An inbox
    that cannot empty before one of them does is not waited for; the event counts as `overshoot`.
    """
    for gate in gates:
        if gate.is_over:
            await _wait(gate)


async def _wait(gate: BackpressureGate) -> None:
    if gate.warning is None:
        gate.warning = _warn_later(gate)
    try:
        while gate.is_over:
            holders = holding()
            if any(closes_circle(holder.consumer, gate) for holder in holders):
                gate.overshoot += 1
                return
            with waiting(holders, (gate,)):
                await gate.space_available.wait()
    finally:
        if not gate.space_available:  # the last that waited
            gate.warning.cancel()
            gate.warning = None


def _warn_later(gate: BackpressureGate) -> asyncio.TimerHandle:
    text = "a publisher has waited %g s for room in the inbox of %s"
    loop = asyncio.get_running_loop()
    return loop.call_later(WARN_SECONDS, log.warning, text, WARN_SECONDS, gate.name)

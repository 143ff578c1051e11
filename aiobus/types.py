"""The types of the signatures of this package, for signatures of your own.

    from aiobus.types import Callback, Keys, Types, Where

    async def follow(bus: AsyncEventBus, types: Types, key: Keys, callback: Callback) -> None: ...

Classes that a program makes or catches are in `aiobus` itself. Owns nothing but the names.
"""

from aiobus.bot.process import BusKeywords
from aiobus.bus import Handler, Publishable
from aiobus.dispatcher import Callback
from aiobus.history import Since
from aiobus.inbox import Overflow
from aiobus.journal.retention import Keep
from aiobus.journal.store import Sync
from aiobus.keyring.members import Member, Members, Rules
from aiobus.options import (
    After,
    Keys,
    Names,
    OnMisfit,
    StreamKeywords,
    SubscribeKeywords,
    Types,
    Where,
)
from aiobus.payload import Payload
from aiobus.replay.attach import Strategy
from aiobus.replay.comparison import ChangedDecision, Decision, Raised
from aiobus.replay.explanation import Step
from aiobus.replay.files import Paths
from aiobus.replay.hops import Hop
from aiobus.replay.moments import Zone
from aiobus.replay.report import Verdict
from aiobus.replay.session import Bot
from aiobus.replay.stage import Seat
from aiobus.transport import Transport

__all__ = [
    "After",
    "Bot",
    "BusKeywords",
    "Callback",
    "ChangedDecision",
    "Decision",
    "Handler",
    "Hop",
    "Keep",
    "Keys",
    "Member",
    "Members",
    "Names",
    "OnMisfit",
    "Overflow",
    "Paths",
    "Payload",
    "Publishable",
    "Raised",
    "Rules",
    "Seat",
    "Since",
    "Step",
    "Strategy",
    "StreamKeywords",
    "SubscribeKeywords",
    "Sync",
    "Transport",
    "Types",
    "Verdict",
    "Where",
    "Zone",
]

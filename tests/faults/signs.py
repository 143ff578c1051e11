"""What one bot notices of its peers, and when: code that runs in its process.

Owns the words for it: stale, peer_left and peer_joined, `relink` for a link that is made again, and
`unmet` where the address cannot be reached.
"""

__all__ = ["TAKE", "WATCH"]

WATCH = """
import logging, time
self.signs = []
class Watch(logging.Handler):
    def emit(watch, record):
        if "links anew" in record.getMessage():
            self.signs.append(["relink", time.monotonic()])
        elif "no connection to" in record.getMessage():
            self.signs.append(["unmet", time.monotonic()])
logging.getLogger("aiobus.mesh").setLevel(logging.DEBUG)
logging.getLogger("aiobus.mesh").addHandler(Watch())
logging.getLogger("aiobus.mesh").propagate = False
async def on_event(event):
    self.signs.append([event.type.removeprefix("aiobus."), time.monotonic()])
await bus.subscribe(["aiobus.stale", "aiobus.peer_left", "aiobus.peer_joined"], on_event)
"""
TAKE = "signs, self.signs = self.signs, []; return signs"
"""What was noticed since the last time: pairs of a word and a monotonic time in seconds."""

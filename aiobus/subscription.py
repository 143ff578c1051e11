"""What a user holds of a subscription: its name, its counters and its end.

The rest of it, which belongs to whoever serves it, is the `Receiver` behind.
"""

from aiobus.receiver import Receiver
from aiobus.stats import SubscriptionStats

__all__ = ["Subscription"]


class Subscription:
    """A live subscription; made by `bus.subscribe`, and behind every stream."""

    __slots__ = ("_receiver",)

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def __repr__(self) -> str:
        return f"<Subscription {self._receiver!r}>"

    @property
    def name(self) -> str:
        """How logs, stats and system events call it: the callback and the beginning of `query`."""
        return self._receiver.name

    @property
    def query(self) -> str:
        """The types and keys it selects: `TRADE/BTCUSDT`, `*/BTC*`, or several with spaces between.
        With keys for `*`, and with more than 1,024 bytes of them, other buses are asked for more
        than that, and this one leaves out the rest.
        """
        return str(self._receiver.query)

    @property
    def unconfirmed(self) -> frozenset[str]:
        """Names of the buses that did not confirm it in time, refuse its query, or whose link was
        cut, and meeting addresses that did not answer (`tcp://127.0.0.1:7555`). Each goes once it
        has confirmed, from when on its events are owed, or has left; always empty where there are
        no others.
        """
        return self._receiver.intake.unconfirmed

    @property
    def reached(self) -> float | None:
        """With `since=` a time: how far back the histories went, in Unix seconds. Of what the buses
        that run now have published since then, nothing is missing. Known when `subscribe` returns,
        but for those in `unconfirmed`.
        """
        return self._receiver.reached

    @property
    def stats(self) -> SubscriptionStats:
        """A snapshot of its counters; after it has ended, the last ones. Raises WrongLoop in
        another thread while the loop runs, and in a forked child.
        """
        self._receiver.owner.check_thread()
        return self._receiver.stats

    async def unsubscribe(self) -> None:
        """End it: no new call of the callback starts, events in the inbox are gone.

        Never waits: a call in progress goes on. Twice is fine. Raises WrongLoop elsewhere.
        """
        self._receiver.owner.check_loop()
        self._receiver.owner.drop(self._receiver)

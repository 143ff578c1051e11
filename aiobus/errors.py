"""Every exception of the package.

    BusError
    ├── BusClosed         the bus is not open (not started, closing or closed)
    ├── EncodeError       the event cannot travel as it is            (also a ValueError)
    ├── QueueFull         publish_nowait() met a full "block" inbox, or a reader it must not outrun
    ├── NameInUse         another bus of this name is on the network
    ├── NoSubscribers     no subscription names the type of a request()
    ├── RequestTimeout    request() was published but not answered    (also a TimeoutError)
    └── WrongLoop         called from another event loop, thread or process

Facts are in attributes, the way out is in the text. This module knows nothing else of the package.
"""

__all__ = [
    "BusClosed",
    "BusError",
    "EncodeError",
    "NameInUse",
    "NoSubscribers",
    "QueueFull",
    "RequestTimeout",
    "WrongLoop",
]


TEXT = 160
"""Characters of a path or an event in an error text: its beginning and its end are shown."""


def _short(text: str) -> str:
    """`text`, without its middle if it is long."""
    return text if len(text) <= TEXT else f"{text[: TEXT // 2]} ... {text[-TEXT // 2 :]}"


class BusError(Exception):
    """The base of what this package raises, apart from TypeError and ValueError for arguments."""


class BusClosed(BusError):
    """The bus is not open: `start` was not awaited yet, or `close` has begun. Nothing was
    published.
    """


class EncodeError(BusError, ValueError):
    """An event was refused before it got a seq, because a value in it has no exact JSON form.

    `path` is the value's place as a Python expression (`data['legs'][2].price`); `reason` is why.
    The text leaves out the middle of a long path.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{_short(self.path)}: {self.reason}"


class QueueFull(BusError):
    """`publish_nowait` published nothing, because the "block" inbox of `subscription` is full. Its
    bound is `maxsize` events, of which 256 are reserved while it catches up with another bus.
    With `pace=True` it is also raised when history is full of events that a reader has not
    confirmed; `subscription` is "" then, and `maxsize` is the bound that `Limits` has as `limit`.
    """

    def __init__(self, subscription: str, maxsize: int, limit: str = "") -> None:
        super().__init__(subscription, maxsize, limit)
        self.subscription = subscription
        self.maxsize = maxsize
        self.limit = limit
        """`history_events`, `history_bytes` or `history_total_bytes`; "" if an inbox is full."""

    def __str__(self) -> str:
        if not self.subscription:
            return (
                "history is full of events that a reader has not confirmed (pace=True,"
                f" Limits.{self.limit}={self.maxsize}): nothing was published."
                " `await bus.publish(event)` waits for that, or raise that limit"
            )
        return (
            f"the inbox of {self.subscription} is full (maxsize={self.maxsize}), its policy is"
            " 'block': nothing was published. `await bus.publish(event)` waits for room, or give"
            " that subscription another overflow policy"
        )


class NameInUse(BusError):
    """Another bus named `name` is on `url` already; this one has not joined, or leaves. Raised on
    `ipc://` and `tcp://`.
    """

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name, url)
        self.name = name
        self.url = url
        self.is_here = False
        """True if the other bus is an object of this process."""

    def __str__(self) -> str:
        if self.is_here:
            return (
                f"this very process has a bus named {self.name!r} on {self.url}: use that object,"
                " close it first, or give this one another name="
            )
        return f"a bus named {self.name!r} is on {self.url} already; give this one another name="


class NoSubscribers(BusError):
    """`request` published nothing, because no subscription names the `type` and `key` of the event.
    A subscription to `"*"` does not count, because it is a monitor's.
    """

    def __init__(self, type: str, key: str) -> None:
        super().__init__(type, key)
        self.type = type
        self.key = key

    def __str__(self) -> str:
        return (
            f"no subscription names {self.type} with key {self.key!r} ('*' does not count);"
            " nothing was published. Start the bus that answers it first, or `publish` what needs"
            " no answer"
        )


class RequestTimeout(BusError, TimeoutError):
    """`event` was published, and no reply came within `timeout` seconds. A late reply is delivered
    as an ordinary event.
    """

    def __init__(self, event: object, timeout: float) -> None:
        super().__init__(event, timeout)
        self.event = event
        self.timeout = timeout

    def __str__(self) -> str:
        return (
            f"no reply within {self.timeout:g} s to {_short(str(self.event))};"
            " it was published, so it may still be acted on. If its handler has failed, the log of"
            " that bus and an `aiobus.error` there say so. A reply is an event of the reply types"
            " that is published by the handler of this one, or with its id as `cause`"
        )


class WrongLoop(BusError):
    """The bus was used outside the thread, event loop or process that started it. The call had no
    effect.
    """

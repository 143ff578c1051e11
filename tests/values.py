"""Any event, its row, and all of its fields."""

from typing import Any

from hypothesis import strategies as st

from aiobus import Event, EventType
from aiobus.codec import encode

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
events = st.builds(
    Event,
    st.sampled_from([*EventType, "T", "my.type"]),
    json_values,
    st.floats(0, 1e11),
    key=st.text(max_size=32),
    cause=st.sampled_from(["", "desk@a.1"]),
)


def row_of(event: Event, seq: int) -> bytes:
    return encode(
        seq, event.timestamp, event.type, event.key, event.data, event.cause, limit=1024 * 1024
    )


def all_of(event: Event) -> tuple[Any, ...]:
    """Every field, those that equality leaves out among them."""
    return tuple(getattr(event, field) for field in Event.__dataclass_fields__)

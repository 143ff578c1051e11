"""Times as a person says and reads them: "10:31" of a session, in a time zone.

Owns the forms of a time, the zones, and how times and durations look. Pure: values in, values out.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from fractions import Fraction
from typing import NamedTuple
from zoneinfo import ZoneInfo

from aiobus.limits import LATEST

__all__ = ["Moment", "Zone", "duration", "parse_moment", "windows"]

_FORM = re.compile(
    r"(?:(?P<date>\d{4}-\d\d-\d\d)[T ])?(?P<hour>\d\d?):(?P<minute>\d\d)"
    r"(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,6}))?)?"
    r" ?(?P<offset>Z|[+-]\d\d:?\d\d)?"
)
_FORMS = "'10:31', '10:31:05.250', '2026-11-29T10:31', '2026-11-29T10:31+01:00' or Unix seconds"
_LAST_YEAR = 5138
_MICRO = timedelta(microseconds=1)
_SECOND = 1_000_000
_FIRST_DAY = date(1970, 1, 1)
_UNIX = re.compile(r"\d{1,11}(\.\d+)?")


Span = tuple[float, float]
"""From this time on, and before that: Unix seconds."""


class Zone(NamedTuple):
    """A time zone, and its name as it is printed."""

    info: tzinfo | None
    """None for that of the machine."""
    name: str

    @classmethod
    def of(cls, tz: str | tzinfo | None) -> "Zone":
        """The zone of a name such as "Europe/Berlin", or of a tzinfo; that of the machine for None.
        Raises ValueError for a name that is unknown, or whose rules this machine does not have.
        """
        if tz is None:
            return cls(None, "local time")
        if isinstance(tz, tzinfo):
            return cls(tz, str(tz))
        if tz == "UTC":
            return cls(UTC, "UTC")
        try:
            return cls(ZoneInfo(tz), tz)
        except (KeyError, ValueError, OSError):
            raise ValueError(
                f"tz={tz!r} is no time zone of this machine: give a name such as 'UTC' or"
                " 'Europe/Berlin'; the package tzdata has them if the system has not"
            ) from None

    def local(self, time: float) -> datetime:
        """What the clocks of this zone show at a time, with the offset from UTC."""
        if self.info is None:
            return datetime.fromtimestamp(time).astimezone()
        return datetime.fromtimestamp(time, self.info)

    def day(self, time: float) -> str:
        """The date, and how far the clocks are from UTC."""
        there = self.local(time)
        return f"{there:%Y-%m-%d}, {self.name} (UTC{_offset(there)})"


class Moment(NamedTuple):
    """A time as it was said: on one date or, without one, on any."""

    text: str
    date: date | None
    micros: int
    """From the start of the day."""
    width: int
    """Microseconds that are meant: those of a minute, if no seconds were said."""
    offset: tzinfo | None
    """The zone, if the text has one."""
    unix: float | None = None
    """The time itself, if it was said as Unix seconds."""

    @property
    def is_of_any_day(self) -> bool:
        """True if no date was said."""
        return self.date is None and self.unix is None


def parse_moment(at: str | float | datetime) -> Moment:
    """What `at` means. A time that is said to the minute is that minute, and so on; a number and a
    datetime begin a second. Raises ValueError and TypeError for anything else.
    """
    if isinstance(at, datetime):
        since = at.replace(tzinfo=None) - datetime.combine(at.date(), datetime.min.time())
        return Moment(at.isoformat(), at.date(), since // _MICRO, _SECOND, at.tzinfo)
    is_number = isinstance(at, int | float) and not isinstance(at, bool)
    if not is_number and not isinstance(at, str):
        raise TypeError(f"at={at!r}: {_FORMS} is needed")
    text = str(at).strip()
    if is_number or _UNIX.fullmatch(text):
        if not 0 <= float(at) <= LATEST:
            raise ValueError(f"at={at!r}: Unix seconds from 0 to {LATEST:g} are needed")
        return Moment(text, None, 0, _SECOND, None, float(at))
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"at={at!r}: {_FORMS} is needed")
    hour, minute, second = int(found["hour"]), int(found["minute"]), int(found["second"] or 0)
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError(f"at={at!r}: there is no such time; {_FORMS} is needed")
    fraction = found["fraction"] or ""
    width = 60 * _SECOND if found["second"] is None else 10 ** (6 - len(fraction))
    micros = (hour * 3600 + minute * 60 + second) * _SECOND + int(fraction or 0) * width
    try:
        day = date.fromisoformat(found["date"]) if found["date"] else None
        if day and not 1970 <= day.year <= _LAST_YEAR:
            raise ValueError(f"an event is of 1970 to {_LAST_YEAR}")
        offset = datetime.fromisoformat(f"2000-01-01T00:00{found['offset'] or ''}").tzinfo
    except ValueError as error:
        raise ValueError(f"at={at!r}: {error}") from None
    return Moment(text, day, micros, width, offset)


def windows(moment: Moment, zone: Zone, minutes: Sequence[int]) -> list[Span]:
    """From when to before when `moment` may be, in Unix seconds, in order. If no date was said: on
    each day on which it is within one of these minutes since 1970, which are sorted; if on none,
    the nearest to one. A time that the clocks of the zone show twice is two of them, one that they
    leave out is none.
    """
    if moment.unix is not None:
        return [(moment.unix, moment.unix + moment.width / _SECOND)]
    if moment.date is not None:
        return _on({moment.date}, moment, zone)
    days = {minute // 1440 + step for minute in minutes for step in (-1, 0, 1)}
    dates = {_FIRST_DAY + timedelta(days=day) for day in days if day >= 0}
    several = [(_away(span, minutes), span) for span in _on(dates, moment, zone)]
    nearest = min((away for away, _ in several), default=0.0)
    return [span for away, span in several if away == nearest]


def _away(span: Span, minutes: Sequence[int]) -> float:
    """Seconds from a span to the nearest of these minutes."""
    begin, end = span
    place = bisect_right(minutes, begin / 60)
    beside = minutes[max(0, place - 1) : place + 1]
    return max(0.0, min(max(minute * 60 - end, begin - minute * 60 - 60) for minute in beside))


def _on(dates: Iterable[date], moment: Moment, zone: Zone) -> list[Span]:
    """When the clocks of a zone show a time on these dates."""
    info = moment.offset or zone.info
    begins = set()
    for each in dates:
        shown = datetime.combine(each, datetime.min.time()) + moment.micros * _MICRO
        for fold in (0, 1):
            begin = shown.replace(tzinfo=info, fold=fold).timestamp()
            if datetime.fromtimestamp(begin, info).replace(tzinfo=None, fold=0) == shown:
                begins.add(round(begin * _SECOND))
    # A time to the microsecond, as it is printed, is a rounded one.
    early = Fraction(1, 2) if moment.width == 1 else 0
    return [(_edge(at - early), _edge(at - early + moment.width)) for at in sorted(begins)]


def _edge(micros: Fraction | int) -> float:
    """The least number of seconds that is not before so many microseconds."""
    exact = Fraction(micros) / _SECOND
    seconds = float(exact)
    return seconds if seconds >= exact else math.nextafter(seconds, math.inf)


def duration(seconds: float) -> str:
    """Seconds with a unit in which they are easily read."""
    size = abs(seconds)
    if size < 0.9995e-3:
        return f"{seconds * 1e6:.0f} us"
    if size < 0.999995:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds:,.3f} s"


def _offset(there: datetime) -> str:
    text = there.strftime("%z") or "+0000"
    return f"{text[:3]}:{text[3:]}"

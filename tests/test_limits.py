"""The figures that bound what a bus keeps."""

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from aiobus import Limits
from aiobus.publisher import FRAME_EVENTS

NAMES = [field.name for field in fields(Limits)]


def test_by_default_a_bus_keeps_131072_events_a_type_and_64_mib_in_all() -> None:
    limits = Limits()
    assert (limits.history_events, limits.history_bytes) == (131_072, 32 * 2**20)
    assert (limits.history_total_bytes, limits.event_bytes) == (64 * 2**20, 2**20)


def test_history_holds_twice_what_a_run_of_dropped_frames_can_lose() -> None:
    limits = Limits()
    assert limits.history_events >= 2 * limits.high_water_mark * FRAME_EVENTS


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_can_be_set_by_name(name: str) -> None:
    least = 64 if name == "high_water_mark" else 1
    assert getattr(Limits(**{name: least}), name) == least


def test_so_few_messages_that_signs_of_life_do_not_get_through_are_refused() -> None:
    with pytest.raises(ValueError, match=r"high_water_mark=63.*64 messages"):
        Limits(high_water_mark=63)


def test_events_that_no_peer_could_take_are_refused() -> None:
    with pytest.raises(ValueError, match="15 MiB"):
        Limits(event_bytes=15 * 1024 * 1024 + 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1, 1.5, 10.0, "5", None, True])
def test_a_figure_that_is_no_positive_whole_number_is_refused_by_name(
    name: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=rf"Limits\({name}=.*\): a positive whole number"):
        Limits(**{name: value})


def test_figures_are_given_by_name_only() -> None:
    make: Any = Limits
    with pytest.raises(TypeError):
        make(5)


def test_limits_do_not_change() -> None:
    limits: Any = Limits()
    with pytest.raises(FrozenInstanceError):
        limits.types = 5


def test_equal_figures_are_equal_limits() -> None:
    assert Limits(types=5) == Limits(types=5) != Limits(types=6)

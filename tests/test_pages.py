"""Requests for pages: few at once to each source, the others in their turn."""

from aiobus.history import Want
from aiobus.mesh.interest import AT_ONCE, Pages
from aiobus.sequence import RETRY

A, B = ("a", 1), ("b", 1)


class Requests:
    """`Pages`, and what it has sent; inlets are plain names."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, tuple[str, int], Want, int]] = []
        self.pages = Pages(lambda *request: self.sent.append(request))  # type: ignore[arg-type]

    def ask(self, *names: str, source: tuple[str, int] = A, after: int = 0) -> None:
        for name in names:
            self.pages.ask(name, source, Want(after), 10, 0.0)  # type: ignore[arg-type]

    def answered(self, name: str) -> None:
        self.pages.answered(name, A, 0.0)  # type: ignore[arg-type]

    def names(self) -> list[str]:
        names = [name for name, *_ in self.sent]
        self.sent.clear()
        return names


MANY = [f"s{number}" for number in range(AT_ONCE)]


def test_a_request_is_sent_at_once_while_few_are_under_way() -> None:
    requests = Requests()
    requests.ask("x", after=7)
    assert requests.sent == [("x", A, Want(7), 10)]


def test_one_too_many_waits_until_another_is_answered() -> None:
    requests = Requests()
    requests.ask(*MANY, "late")
    assert requests.names() == MANY
    requests.answered(MANY[3])
    assert requests.names() == ["late"]


def test_another_source_is_not_held_up() -> None:
    requests = Requests()
    requests.ask(*MANY)
    requests.ask("x", source=B)
    assert requests.names() == [*MANY, "x"]


def test_who_asks_again_is_sent_again_and_takes_no_second_place() -> None:
    requests = Requests()
    requests.ask(*MANY, MANY[0], "late")
    assert requests.names() == [*MANY, MANY[0]]
    requests.answered(MANY[0])
    assert requests.names() == ["late"]


def test_of_what_one_that_waits_asks_the_last_counts() -> None:
    requests = Requests()
    requests.ask(*MANY, "late")
    requests.ask("late", after=5)
    requests.sent.clear()
    requests.answered(MANY[0])
    assert requests.sent == [("late", A, Want(5), 10)]


def test_what_has_no_answer_after_a_second_makes_room_for_others() -> None:
    requests = Requests()
    requests.ask(*MANY, "late")
    requests.names()
    requests.pages.tick(RETRY / 2)
    assert requests.names() == []
    requests.pages.tick(RETRY)
    assert requests.names() == ["late"]


def test_who_is_forgotten_asks_nothing_more_and_makes_room_with_the_next_tick() -> None:
    requests = Requests()
    requests.ask(*MANY, "gone", "late")
    requests.names()
    for name in ("gone", MANY[0]):
        requests.pages.forget(name)  # type: ignore[arg-type]
    requests.pages.tick(0.1)
    assert requests.names() == ["late"]


def test_who_has_to_wait_is_told_so() -> None:
    pages = Pages(lambda *request: None)
    asked = [pages.ask(name, A, 0, 10, 0.0) for name in (*MANY, "late")]  # type: ignore[arg-type]
    assert asked == [False] * AT_ONCE + [True]

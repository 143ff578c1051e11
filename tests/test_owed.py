"""Questions that wait for a page: bounded for each link, answered in turn, none of them twice."""

from aiobus.mesh.answers import MAX_PAGES, Owed
from aiobus.wire import Ask, PageAsk, PeerId, WireError, up

BOT = PeerId("bot", 50, "ipc:///bot")
FEED = PeerId("feed", 70, "ipc:///feed")
ONE, TWO = 11, 12


def asked(nonce: int, after: int = 0, who: PeerId = BOT) -> PageAsk:
    return PageAsk("desk", nonce, who, 1, "T", after, 10, None, 0)


def put(owed: Owed, link: int, *questions: PageAsk) -> None:
    """As they come: what need not be read is left."""
    for question in questions:
        message = up(question)
        if not owed.leaves(link, message):
            owed.put(link, message, question)


def is_refused(owed: Owed, link: int, question: PageAsk) -> bool:
    try:
        put(owed, link, question)
    except WireError:
        return True
    return False


def taken(owed: Owed) -> list[Ask | PageAsk]:
    found: list[Ask | PageAsk] = []
    while (next := owed.take()) is not None:
        found.append(next[1])
    return found


def test_questions_of_one_link_are_answered_in_the_order_asked() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, asked(1), asked(2), asked(3))
    assert taken(owed) == [asked(1), asked(2), asked(3)]
    assert len(owed) == 0


def test_a_question_that_is_repeated_while_it_is_under_way_is_answered_once() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, asked(1), asked(1), asked(2), asked(1))
    assert taken(owed) == [asked(1), asked(2)]


def test_a_question_that_is_repeated_after_its_answer_is_answered_again() -> None:
    """The first answer may have been lost."""
    owed = Owed("!", MAX_PAGES)
    for _ in range(2):
        put(owed, ONE, asked(1))
        assert taken(owed) == [asked(1)]


def test_of_several_questions_under_one_number_the_last_is_answered_in_the_place_of_the_first() -> (
    None
):
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, asked(1), asked(2), asked(1, after=7), asked(1))
    assert taken(owed) == [asked(1), asked(2)]


def test_one_number_of_two_askers_is_two_questions() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, asked(1), asked(1, who=FEED))
    assert len(taken(owed)) == 2


def test_links_take_turns() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, *(asked(number) for number in range(1, 4)))
    put(owed, TWO, asked(9, who=FEED))
    assert [question.nonce for question in taken(owed)] == [1, 9, 2, 3]


def test_beyond_the_bound_of_its_link_a_question_is_refused_until_one_is_answered() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, *(asked(number) for number in range(MAX_PAGES)))
    assert is_refused(owed, ONE, asked(MAX_PAGES))
    assert not is_refused(owed, ONE, asked(0))
    assert not is_refused(owed, TWO, asked(1))
    assert owed.take() == (ONE, asked(0))
    assert not is_refused(owed, ONE, asked(MAX_PAGES))
    assert len(owed) == MAX_PAGES + 1


def test_what_a_link_that_is_gone_has_asked_is_dropped() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, asked(1), asked(2))
    put(owed, TWO, asked(3))
    owed.drop(ONE)
    assert taken(owed) == [asked(3)]
    put(owed, ONE, asked(1))
    assert taken(owed) == [asked(1)]

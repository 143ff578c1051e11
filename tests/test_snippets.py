"""Every snippet of the pages under docs/ runs, and prints what the page shows."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fragments import DESK, PROGRAMS, program
from snippets import ROOT, Block, Session, blocks

from aiobus import AsyncEventBus, Event, EventType

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

DOCS = ROOT / "docs"
ELSEWHERE = {DOCS / "how-to" / "systemd-and-docker.md"}
"""It needs a service manager: `test_supervisors.py` runs what can be run of it."""
PAGES = sorted(
    {
        ROOT / "README.md",
        DOCS / "tutorial.md",
        *DOCS.glob("how-to/*.md"),
        *DOCS.glob("coming-from/*.md"),
    }
    - ELSEWHERE
)


@pytest.fixture
def place() -> Iterator[Path]:
    """Short, since the path of a socket has to be."""
    with tempfile.TemporaryDirectory(prefix="ab", dir="/tmp") as made:
        yield Path(made).resolve()  # on macOS, /tmp is a link


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_page_tells_its_reader_to_run_prints_what_it_shows(page: Path, place: Path) -> None:
    session = Session(page, place)
    session.run()
    assert session.left_out() == set(), "these files are shown and never run"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_of_a_page_is_of_a_kind_that_is_run(page: Path) -> None:
    shown = blocks(page)
    assert page.read_text().count("```") == 2 * len(shown)
    terminals = {block.info.split()[1] for block in shown if block.info.startswith("terminal ")}

    def is_run(block: Block) -> bool:
        match block.language:
            case "python":
                return block.file is not None or block.info in {"cell", "theirs"}
            case "sh":
                return block.info in {"", "install"} or block.info.startswith("terminal ")
            case "text":
                return block.info in {"", *terminals}
            case _:
                return block.file is not None

    assert [block for block in shown if not is_run(block)] == []


@pytest.mark.parametrize("page", PROGRAMS)
def test_each_fragment_of_a_reference_page_runs_within_a_program(page: str, place: Path) -> None:
    session = Session(DOCS / page, place)
    (session.folder / "desk.py").write_text(DESK)
    session.shell("python -c 'from desk import *; asyncio.run(session()); asyncio.run(journal())'")
    fragments = [each for each in session.blocks if (each.language, each.info) == ("python", "")]
    assert len(fragments) == len(PROGRAMS[page])
    for number, block in enumerate(fragments):
        code, command = program(page, block, f"fragment_{number}.py")
        (session.folder / f"fragment_{number}.py").write_text(code)
        session.shell(command, session.where(block))


@pytest.mark.parametrize("data", [{"haltd": True}, {"halted": "no", "reason": ""}, None, "stop"])
async def test_the_switch_of_the_risk_page_takes_a_halt_that_it_cannot_read_for_a_halt(
    data: object,
) -> None:
    page = blocks(DOCS / "how-to" / "risk-with-a-sticky-halt.md")
    names: dict[str, Any] = {}
    exec(next(each.text for each in page if each.file == "switch.py"), names)
    async with AsyncEventBus(name="risk") as bus:
        switch = names["Switch"](bus)
        await switch.start()
        await bus.publish(Event(EventType.HALT, {"halted": False, "reason": "so far"}))
        await bus.settle()
        assert switch.why_not == ""
        await bus.publish(Event(EventType.HALT, data))
        await bus.settle()
        assert switch.why_not.startswith("a HALT that cannot be read")
        await bus.publish(Event(EventType.HALT, {"halted": True, "reason": ""}))
        await bus.settle()
        assert switch.why_not == "halted"


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_test_of_the_tutorial_passes_and_can_fail(mode: str, place: Path) -> None:
    session = Session(DOCS / "tutorial.md", place)
    for block in session.blocks:
        if block.file is not None:
            (session.folder / block.file).write_text(block.text)
    strategy = session.folder / "strategy.py"
    command = f"pytest -o asyncio_mode={mode} test_strategy.py"
    assert "2 passed" in session.shell(command)
    strategy.write_text(strategy.read_text().replace("is_armed = False", "is_armed = True"))
    assert "1 failed, 1 passed" in session.shell(f"{command} || true")


# The runner itself: a page that is wrong is found.


def run_page(text: str, place: Path) -> Session:
    """A session with a page of this text, in which ''' stands for a fence."""
    page = place / "page.md"
    page.write_text(text.replace("'''", "```"))
    session = Session(page, place)
    session.run()
    return session


RIGHT = """
'''python one.py
from two import number

print(number, 2, 3)
print("four")
'''

'''python two.py
number = 1
'''

'''sh
python one.py
'''

'''text
1 ... 3
...
'''
"""
SESSION = """
'''sh terminal one
echo live; read line || true; trap 'echo bye; exit 0' INT; sleep 60 >/dev/null 2>&1 & wait
'''

'''text
live
'''

'''text one
^C
bye
'''
"""
CELLS = """
'''python cell
import asyncio

value = await asyncio.sleep(0, "some")
value
'''

'''text
'some'
'''

'''python cell
print(value)
'''

'''text
some
'''
"""
HOSTS = f"""
'''sh at two
echo "the public key of feed: '{"b" * 40}'"
'''

'''text
the public key of feed: '{"a" * 40}'
'''

'''sh at one
echo "10.0.0.5:7555 10.0.0.6:7555 {"a" * 40}" > told
scp -p told two:./
'''

'''sh at two
cat told
'''

'''text
10.0.0.5:7555 10.0.0.6:7555 {"a" * 40}
'''
"""


@pytest.mark.parametrize("text", [RIGHT, SESSION, CELLS, HOSTS])
def test_a_page_that_is_right_passes(text: str, place: Path) -> None:
    assert run_page(text, place).left_out() == set()


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        (RIGHT, "1 ... 3", "1 ... 4"),
        (RIGHT, "1 ... 3\n...", "1 ... 3"),
        (RIGHT, "number = 1", "number = "),
        (RIGHT, "python one.py\n", "python one.py; exit 3\n"),
        (SESSION, "live\n'''\n\n'''text", "dead\n'''\n\n'''text"),
        (SESSION, "^C\nbye", "^C\nno"),
        (SESSION, "exit 0", "exit 3"),
        (CELLS, "\nsome\n", "\nother\n"),
        (HOSTS, "scp -p told two:./", "true"),
        (HOSTS, "text\n10.0.0.5:7555 10.0.0.6", "text\n10.0.0.6:7555 10.0.0.5"),
        (HOSTS, "cat told\n'''\n\n'''text\n", f"cat told\n'''\n\n'''text\n{'c' * 40}"),
        (CELLS, "print(value)", "print(valeu)"),
    ],
)
def test_a_page_that_is_wrong_fails(
    text: str, right: str, wrong: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snippets.SECONDS", 3.0)
    assert right in text
    with pytest.raises(AssertionError):
        run_page(text.replace(right, wrong), place)


def test_a_file_that_nothing_runs_is_found(place: Path) -> None:
    session = run_page(RIGHT.replace("from two import number", "number = 1"), place)
    assert session.left_out() == {"two.py"}


def test_what_a_page_leaves_running_is_ended_by_ctrl_c(place: Path) -> None:
    begun, _, _ = SESSION.partition("'''text one")
    session = run_page(begun, place)
    assert session.terminals["one"].process.poll() == 0

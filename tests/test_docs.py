"""What the pages say of the code is true: links lead somewhere, proofs exist, tables are whole."""

import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

import aiobus
from aiobus import AsyncEventBus, Limits, errors, sequence
from aiobus.diagnostics import Diagnostics
from aiobus.inbox import Overflow
from aiobus.options import SubscribeKeywords
from aiobus.presence import Peer
from aiobus.publisher import Publisher
from aiobus.query import SYSTEM
from aiobus.refusals import DENIALS, NOTICED, TOLD
from aiobus.sequence import Gap
from aiobus.stats import BusStats, SubscriptionStats

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/*/*.md", "*/README.md")
    for path in ROOT.glob(pattern)
    if not path.parent.name.startswith(".")  # such as .pytest_cache
)
CONTRACT = (ROOT / "docs" / "contract.md").read_text()
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
UNITS = {"": 1, " MiB": 1024 * 1024}


def part(title: str) -> str:
    """The text of the contract from this heading to the next of its level."""
    _, _, rest = CONTRACT.partition(f"\n{title}\n")
    assert rest, title
    level = title.split(" ")[0]
    return re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)[0]


def table(title: str, head: str) -> dict[str, list[str]]:
    """The rows of the table whose first column is called `head`, by what is there in it."""
    lines = iter(part(title).splitlines())
    for line in lines:
        if line.startswith(f"| {head} |"):
            break
    next(lines)
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        first, *rest = (cell.strip() for cell in line.strip("|").split(" | "))
        rows[first] = rest
    assert rows, (title, head)
    return rows


def quoted(text: str) -> list[str]:
    """What is between backquotes."""
    return re.findall(r"`([^`]+)`", text)


def names(rows: dict[str, list[str]]) -> set[str]:
    """What is between backquotes in the first column."""
    return set(quoted(" ".join(rows)))


def slug(heading: str) -> str:
    """The anchor of a heading on GitHub."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


# Links.


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_to_a_heading(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", CODE.sub("", page.read_text()))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", CODE.sub("", path.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_every_make_target_of_a_page_is_one_of_the_makefile() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = re.compile(r"(?:^|`)(?:\w+=\S+ )?make ([a-z-]+)", re.MULTILINE)
    for page in PAGES:
        assert set(told.findall(page.read_text())) <= known, page


def linked(page: Path) -> set[Path]:
    """The files that a page links to."""
    told = re.findall(r"\]\(([^)#]+)", page.read_text())
    return {(page.parent / target).resolve() for target in told}


def test_the_readme_or_the_index_of_docs_leads_to_every_page() -> None:
    readme, index = ROOT / "README.md", ROOT / "docs" / "README.md"
    assert index in linked(readme)
    others = {readme, ROOT / "examples" / "README.md"}
    assert set(PAGES) <= linked(readme) | linked(index) | others


def test_the_index_of_docs_leads_to_every_page_of_docs() -> None:
    index = ROOT / "docs" / "README.md"
    pages = {page for page in PAGES if page.is_relative_to(index.parent)}
    assert pages - {index} <= linked(index)


# Proofs.


def test_every_clause_has_a_proof() -> None:
    clauses = re.split(r"^### ", part("## The clauses"), flags=re.MULTILINE)[1:]
    assert [clause.split(".")[0] for clause in clauses] == [*map(str, range(1, len(clauses) + 1))]
    for clause in clauses:
        _, _, proof = clause.partition("Proved by:")
        assert "](../tests/" in proof, clause


def test_every_proof_is_a_test() -> None:
    proofs = re.findall(
        r"\[`[^`]+`\]\((\.\./tests/[^)]+\.py)\)(?:: ((?:\*[^*]+\*(?:,\s+)?)+))?", CONTRACT
    )
    assert len(proofs) > 40
    for file, listed in proofs:
        code = (ROOT / "docs" / file).read_text()
        known = {
            re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
            for name in re.findall(r"(?:def |^)(test_\w+|Test\w+)", code, re.MULTILINE)
        }
        for sentence in re.findall(r"\*([^*]+)\*", listed):
            assert "test_" + re.sub(r"\W+", "_", sentence) in known, (file, sentence)


SECURITY = (ROOT / "docs" / "security.md").read_text()


def test_each_row_of_the_threats_and_of_the_limits_names_a_test_that_there_is() -> None:
    rows = [line for line in SECURITY.splitlines() if re.match(r"\| [^-]", line)]
    proven = [line for line in rows if not line.endswith(" | test |")]
    assert len(proven) > 30
    for line in proven:
        last = line.strip("| ").split(" | ")[-1]
        named = re.findall(r"\[`([\w.]+)`\]\(\.\./tests/([\w/]+\.py)\): ((?:\*[^*]+\*,? ?)+)", last)
        assert named, line
        for label, file, sentences in named:
            path = ROOT / "tests" / file
            assert label == path.name, line
            known = set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))
            for sentence in re.findall(r"\*([^*]+)\*", sentences):
                assert "test_" + re.sub(r"\W+", "_", sentence) in known, (file, sentence)


def test_the_bounds_of_the_limits_are_those_of_the_code() -> None:
    told = re.findall(r"\| ([\d,.]+)( \w+)? \| `(aiobus\.[\w.]+)` \|", SECURITY)
    assert len(told) > 10
    scale = {"": 1, " s": 1, " ms": 1, " MiB": 1024 * 1024}
    for number, unit, constant in told:
        module, _, name = constant.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        assert float(number.replace(",", "")) * scale[unit] == value, constant


SAID_OF_LISTS = inspect.getsource(Diagnostics)


def test_each_cause_of_a_refusal_is_a_row_of_the_page_of_two_hosts() -> None:
    page = (ROOT / "docs" / "how-to" / "two-hosts.md").read_text()
    told = re.findall(r'^\| "([^"]+)" \|', page, re.MULTILINE)
    words = {"where": "ADDRESS", "name": "NAME", "what": "a program at ADDRESS"}
    said = [text.format(**words) for text in NOTICED.values()]
    said += [f"NAME makes no link to this bus: {text}" for text in TOLD.values()]
    said += [f"ADDRESS {text}" for each in DENIALS.values() for text in each]
    for text in said:
        assert any(text.startswith(row) for row in told), text
    for row in told:
        assert any(text.startswith(row) for text in said) or row in SAID_OF_LISTS, row


# Tables.


class Announced(Diagnostics):
    """Keeps the system events in place of publishing them."""

    def __init__(self) -> None:
        super().__init__(Publisher("desk", Limits()), None, lambda error: None)
        self.fields: dict[str, list[str]] = {}

    def announce(self, type: str, data: dict[str, Any], cause: str, then: Any = None) -> None:
        self.fields[type] = [*data]


async def test_the_system_events_and_their_fields_are_those_that_are_published() -> None:
    reports = Announced()
    reports.failure("f(TRADE)", "TRADE", "feed@1.1", ValueError())
    reports.overflow("f(TRADE)", "latest", 1)
    reports.left_behind("bot", "TRADE", 1, 30)
    reports.gap("f(TRADE)", "TRADE", ("feed", 1), Gap(1, 2, "lost"))
    reports.peer_joined("feed", 1)
    reports.peer_left("feed", 1, 2, "it closed")
    reports.peer_restarted("feed", 1, 3, 2, lambda: None)
    reports.refused("10.0.0.1", "feed", "unknown", 1, "its key is not on the list")
    reports.stale("feed", 1, 2)
    reports.fresh("feed", 1, 2, 3.0)
    reports.unreached(["tcp://127.0.0.1:7555"])
    reports.clock_skew("feed", 1, 0.3, 0.001)
    reports.close()
    told = table("## System events", "type")
    assert {quoted(type)[0]: quoted(cells[0]) for type, cells in told.items()} == reports.fields
    assert set(reports.fields) == set(SYSTEM)
    explained = names(table("## System events", "field"))
    assert explained == {name for known in reports.fields.values() for name in known}


def test_the_reasons_of_gaps_are_those_that_the_code_gives() -> None:
    given = {
        value for name, value in vars(sequence).items() if name.isupper() and isinstance(value, str)
    }
    told = {reason.strip('"') for reason in table("## System events", "`reason` of `aiobus.gap`")}
    assert told == given


def test_the_reasons_of_leaving_are_those_that_the_code_gives() -> None:
    links = "".join(path.read_text() for path in Path(aiobus.__file__).parent.rglob("*.py"))
    told = re.findall(r'`reason` "([^"]+)"', part("## What a handler sees"))
    assert len(told) == 3
    for reason in told:
        assert f'"{reason}"' in links, reason


def test_the_limits_and_their_defaults_are_those_of_limits() -> None:
    told = {}
    for name, (default, *_) in table("## Limits", "limit").items():
        number, unit = re.fullmatch(r"([\d,]+)( MiB)?", default).groups("")  # type: ignore[union-attr]
        told[quoted(name)[0]] = int(number.replace(",", "")) * UNITS[unit]
    assert told == {each.name: getattr(Limits(), each.name) for each in fields(Limits)}


def test_the_options_of_a_subscription_and_their_defaults_are_those_of_subscribe() -> None:
    told = table("## Options of a subscription", "option")
    parameters = inspect.signature(AsyncEventBus.subscribe).parameters
    assert {quoted(name)[0] for name in told} == {"payload", *SubscribeKeywords.__annotations__}
    for name, (default, *_) in told.items():
        known = parameters[quoted(name)[0]].default
        assert quoted(default) == [f'"{known}"' if isinstance(known, str) else repr(known)]


def test_the_policies_are_those_of_an_inbox() -> None:
    told = names(table("### Overflow policies", "policy"))
    assert told == set(get_args(Overflow))


def test_the_errors_are_those_of_the_package() -> None:
    told = names(table("## Errors", "error"))
    assert told == set(errors.__all__) - {"BusError"}


def test_the_counters_are_those_of_stats() -> None:
    assert names(table("## Counters", "counter")) == {
        each.name for each in fields(SubscriptionStats)
    }
    for kind, title in ((BusStats, "## Counters"), (Peer, "### Who is there")):
        listed = part(title).partition(f"`{kind.__name__}`: ")[2]
        assert quoted(listed)[: len(fields(kind))] == [each.name for each in fields(kind)]


def test_every_public_call_of_a_bus_is_told() -> None:
    told = " ".join(table("## Calls", "call"))
    for name, value in vars(AsyncEventBus).items():
        if not name.startswith("_") and name != "start" and callable(value):
            assert re.search(rf"bus\.{name}\(", told), name


def test_everything_that_the_package_exports_is_told() -> None:
    pages = CONTRACT + (ROOT / "README.md").read_text()
    for name in aiobus.__all__:
        assert re.search(rf"\b{name}\b", pages), name

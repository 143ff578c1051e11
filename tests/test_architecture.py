"""Imports flow one way, in the order of the table below. What fails, says why in a sentence."""

import ast
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "aiobus"

# A module imports only from lines above its own; modules on one line do not know each other.
ORDER = [
    "aiobus.errors  aiobus.clock  aiobus.limits  aiobus.fragments  aiobus.seconds",
    "aiobus.stats  aiobus.event  aiobus.pattern  aiobus.epochs",
    "aiobus.codec  aiobus.delivery",
    "aiobus.history  aiobus.turn  aiobus.waiters  aiobus.held",
    "aiobus.rows",
    "aiobus.wire  aiobus.inbox",
    "aiobus.terms",
    "aiobus.sequence  aiobus.stream  aiobus.peers",
    "aiobus.publisher",
    "aiobus.transport  aiobus.transport.meeting  aiobus.transport.fork",
    "aiobus.transport.descriptors  aiobus.transport.doorway  aiobus.transport.folder",
    "aiobus.transport.network  aiobus.transport.rounds  aiobus.transport.topic",
    "aiobus.transport.address  aiobus.transport.askers",
    "aiobus.transport.streams  aiobus.transport.inlets  aiobus.transport.pages",
    "aiobus.transport.probe  aiobus.transport.owed  aiobus.transport.reader",
    "aiobus.transport.doubts  aiobus.transport.searches  aiobus.transport.unplaced",
    "aiobus.transport.links  aiobus.transport.answers",
    "aiobus.transport.roster  aiobus.transport.memory",
    "aiobus.transport.marks  aiobus.transport.queries",
    "aiobus.transport.local  aiobus.transport.mesh  aiobus.transport.zmq  aiobus.transport.holder",
    "aiobus.transport.directory  aiobus.transport.rendezvous",
    "aiobus.transport.scheme  aiobus.reports  aiobus.intake",
    "aiobus.receiver",
    "aiobus.subscription  aiobus.dispatch  aiobus.life",
    "aiobus.eventstream  aiobus.subscriptions  aiobus.backpressure",
    "aiobus.requests",
    "aiobus.bus",
    "aiobus",
    "aiobus.bench",
    "aiobus.testing.settling  aiobus.testing.runner  aiobus.testing.virtual_loop",
    "aiobus.testing.network",
    "aiobus.testing  aiobus.testing.plugin",
]
LINE = {module: line for line, modules in enumerate(ORDER) for module in modules.split()}

# Values in, decisions out: no loop, no clock, no I/O.
PURE = (
    "errors limits fragments seconds stats pattern codec inbox delivery history terms sequence rows"
    " publisher wire stream peers transport.askers transport.owed transport.unplaced"
)
IMPURE = {
    *("asyncio", "zmq", "os", "pathlib", "io", "socket", "sqlite3", "time", "logging", "threading"),
    "aiobus.clock",
}
DEPENDENCIES = {"orjson", "zmq", "aiobus"}
FOR_PYTEST = {"pytest", "pytest_asyncio"}
PLUGINS = {"aiobus.testing.plugin", "aiobus.testing.runner"}  # imported by pytest alone
FOR_TYPES = {"typing_extensions"}


class When(Enum):
    AT_ONCE = "as soon as it is imported"
    LATER = "in a function"
    NEVER = "for type checkers only"


class Import(NamedTuple):
    module: str
    what: str
    line: int
    when: When

    @property
    def top(self) -> str:
        return self.what.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.module} (line {self.line}) imports {self.what}"


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def walk(node: ast.AST, when: When = When.AT_ONCE) -> Iterator[tuple[ast.AST, When]]:
    """Every node below, and when it runs."""
    for child in ast.iter_child_nodes(node):
        within = when
        if isinstance(node, ast.If) and child in node.body and is_type_checking(node.test):
            within = When.NEVER
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and when is When.AT_ONCE:
            within = When.LATER
        yield child, within
        yield from walk(child, within)


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_of(module: str) -> Iterator[Import]:
    for node, when in walk(TREES[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, when)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} (line {node.lineno}) has a relative import"
            origin = node.module or ""
            for alias in node.names:  # `from aiobus import clock` imports the module aiobus.clock
                inner = f"{origin}.{alias.name}"
                yield Import(module, inner if inner in FILES else origin, node.lineno, when)


IMPORTS = [found for module in TREES for found in imports_of(module)]


def is_own(what: str) -> bool:
    return what == "aiobus" or what.startswith("aiobus.")


def complaint(found: Import) -> str:
    """What is wrong with one import between our modules; "" when nothing is."""
    if LINE.get(found.what, -1) < LINE.get(found.module, len(ORDER)):
        return ""
    return f"{found}, which stands on the same line or below it: {found.what} is to know less"


@pytest.mark.parametrize("module", TREES)
def test_every_module_has_its_place_in_the_order(module: str) -> None:
    assert module in LINE, f"{module} is new: give it a line in ORDER, above all that import it"


@pytest.mark.parametrize("module", LINE)
def test_every_place_in_the_order_has_its_module(module: str) -> None:
    assert module in TREES, f"{module} stands in ORDER but does not exist"


@pytest.mark.parametrize("module", TREES)
def test_a_module_imports_only_from_lines_above_its_own(module: str) -> None:
    wrong = [complaint(found) for found in imports_of(module) if is_own(found.what)]
    assert [sentence for sentence in wrong if sentence] == []


@pytest.mark.parametrize("module", [f"aiobus.{name}" for name in PURE.split()])
def test_a_pure_module_knows_no_loop_no_clock_and_no_io(module: str) -> None:
    wrong = [
        f"{found}, but it is to be pure"
        for found in imports_of(module)
        if found.top in IMPURE or found.what in IMPURE
    ]
    assert wrong == []


def test_only_transports_import_zmq_and_nobody_else_pays_for_it() -> None:
    wrong = [
        f"{found} {found.when.value}; only modules of aiobus.transport may"
        for found in IMPORTS
        if found.top == "zmq"
        and found.when is When.AT_ONCE
        and not found.module.startswith("aiobus.transport.")
    ]
    assert wrong == []


def test_nothing_is_imported_but_the_standard_library_orjson_and_zmq() -> None:
    wrong = [
        f"{found}, which is no dependency"
        for found in IMPORTS
        if found.top not in sys.stdlib_module_names | DEPENDENCIES
        and not (found.when is When.NEVER and found.top in FOR_TYPES)
        and not (found.module in PLUGINS and found.top in FOR_PYTEST)
    ]
    assert wrong == []


# The walker itself sees what it is there to see.

HIDDEN = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import zmq.asyncio
else:
    import zmq.green
def later():
    from aiobus import clock, bus
class Now:
    import zmq
"""


def test_imports_in_functions_and_for_type_checkers_are_found_as_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(TREES, "aiobus.hidden", ast.parse(HIDDEN))
    assert [(found.what, found.when) for found in imports_of("aiobus.hidden")] == [
        ("typing", When.AT_ONCE),
        ("zmq.asyncio", When.NEVER),
        ("zmq.green", When.AT_ONCE),
        ("aiobus.clock", When.LATER),
        ("aiobus.bus", When.LATER),
        ("zmq", When.AT_ONCE),
    ]


def test_an_import_that_flows_the_wrong_way_is_told_in_a_sentence() -> None:
    assert complaint(Import("aiobus.codec", "aiobus.event", 5, When.AT_ONCE)) == ""
    assert complaint(Import("aiobus.codec", "aiobus.inbox", 5, When.AT_ONCE)) == (
        "aiobus.codec (line 5) imports aiobus.inbox, which stands on the same line or below it:"
        " aiobus.inbox is to know less"
    )

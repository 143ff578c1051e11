"""Imports flow one way, in the order of the table below. What fails, says why in a sentence."""

import ast
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import pytest

import aiobus

PACKAGE = Path(aiobus.__file__).parent

# A module imports only from lines above its own; modules on one line do not know each other.
ORDER = [
    "aiobus.bot  aiobus.keeper  aiobus.limits  aiobus.refusals  aiobus.system",
    "aiobus.bot.ending  aiobus.clock  aiobus.errors  aiobus.query  aiobus.stats",
    (
        "aiobus.discovery  aiobus.discovery.unix_socket  aiobus.event  aiobus.lifecycle  "
        "aiobus.confinement  aiobus.keyring.files  aiobus.keyring.members  aiobus.presence  "
        "aiobus.replay  aiobus.replay.moments"
    ),
    "aiobus.image  aiobus.keyring  aiobus.payload",
    (
        "aiobus.cli  aiobus.cli.expression  aiobus.codec  aiobus.delivery  "
        "aiobus.discovery.directory  aiobus.discovery.roster  aiobus.journal.export  "
        "aiobus.journal.format  aiobus.journal.mark  aiobus.keyring.changes  aiobus.lockout  "
        "aiobus.mesh.skew  aiobus.mesh.zap  aiobus.mesh  "
        "aiobus.replay.report  aiobus.replay.tape"
    ),
    (
        "aiobus.discovery.refusal  aiobus.discovery.tcp_socket  aiobus.discovery.gate  "
        "aiobus.history  aiobus.journal.scan  aiobus.replay.comparison  "
        "aiobus.discovery.reach  aiobus.replay.explanation  aiobus.rows  aiobus.sync  "
        "aiobus.virtual_loop"
    ),
    "aiobus.discovery.seal",
    (
        "aiobus.discovery.registry  aiobus.discovery.guest  aiobus.discovery.hosts  "
        "aiobus.inbox  aiobus.journal.reader  aiobus.journal.retention  aiobus.keeper.kept  "
        "aiobus.sequence  aiobus.virtual_run  aiobus.wire"
    ),
    "aiobus.discovery.meeting  aiobus.discovery.own_address",
    (
        "aiobus.discovery.rendezvous  aiobus.journal  aiobus.journal.history  "
        "aiobus.journal.lookup  aiobus.journal.store  aiobus.keeper.file  aiobus.mesh.peers  "
        "aiobus.options  aiobus.mesh.sockets  aiobus.publisher  aiobus.replies  "
        "aiobus.testing.faults  aiobus.testing.runner"
    ),
    (
        "aiobus.diagnostics  aiobus.journal.writer  aiobus.mesh.fanout  aiobus.replay.files  "
        "aiobus.replay.skews"
    ),
    (
        "aiobus.mesh.answers  aiobus.mesh.byes  aiobus.mesh.namesakes  aiobus.mesh.survey  "
        "aiobus.replay.explain  aiobus.replay.hops  aiobus.subscription"
    ),
    "aiobus.catchup  aiobus.dispatcher  aiobus.replay.evidence  aiobus.stream",
    "aiobus.mesh.interest  aiobus.strand  aiobus.transport",
    "aiobus.mesh.doubts",
    "aiobus.bot.tasks  aiobus.mesh.links  aiobus.pace  aiobus.replay.schedule",
    "aiobus.mesh.session  aiobus.subscriber",
    "aiobus.attendance  aiobus.durable  aiobus.mesh.confirm  aiobus.requests",
    "aiobus.mesh.keyed  aiobus.mesh.transport",
    "aiobus.url",
    "aiobus.bus",
    "aiobus.bot.service  aiobus.replay.attach  aiobus.replay.selection  aiobus.replay.stage",
    (
        "aiobus.bot.process  aiobus.keeper.keeper  aiobus.recorder  aiobus.replay.player  "
        "aiobus.replay.transport"
    ),
    "aiobus.replay.republish  aiobus.replay.session  aiobus.replay.verify",
    (
        "aiobus.cli.arguments  aiobus.cli.keys  aiobus.cli.strategy  aiobus.cli.terminal  "
        "aiobus.replay.what_if"
    ),
    "aiobus.cli.desk  aiobus.cli.files  aiobus.cli.findings  aiobus.cli.replay  aiobus.cli.session",
    (
        "aiobus.cli.bench  aiobus.cli.demo  aiobus.cli.peers  aiobus.cli.publish  "
        "aiobus.cli.record  aiobus.cli.tail"
    ),
    "aiobus.cli.doctor",
    "aiobus.types",
    "aiobus  aiobus.testing.network",
    "aiobus.cli.app",
    "aiobus.__main__  aiobus.keeper.__main__  aiobus.testing  aiobus.testing.plugin",
]
LINE = {module: line for line, modules in enumerate(ORDER) for module in modules.split()}

IMPURE = {
    *("asyncio", "zmq", "os", "pathlib", "io", "socket", "sqlite3", "time", "logging", "threading"),
    "aiobus.clock",
}
MOST_MODULES = 147
"""As many as an engineer can know by name."""
DEPENDENCIES = {"orjson", "zmq", "aiobus"}
FOR_PYTEST = {"pytest", "pytest_asyncio"}
FOR_CHECKERS = {"Publishable"}  # protocols that make mypy and pyright see more
PLUGINS = {"aiobus.testing.plugin", "aiobus.testing.runner"}  # imported by pytest alone
FOR_TYPES = {"typing_extensions"}
EXTRAS = {  # imported when they are needed
    "aiobus.journal.export": {"pyarrow"},
    "aiobus.image": {"msgspec"},
    "aiobus.bot.process": {"uvloop"},
    "aiobus.payload": {"msgspec", "pydantic"},
}
FOR_COMMANDS = {"typer"}  # of the extra `cli`, and what is imported when it is needed:
LATER_FOR_COMMANDS = {"rich"}


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


# Values in, decisions out: no loop, no clock, no I/O.
PURE = [
    name for name, tree in TREES.items() if re.search(r"\bPure\b", ast.get_docstring(tree) or "")
]


@pytest.mark.parametrize("module", PURE)
def test_a_module_that_calls_itself_pure_knows_no_loop_no_clock_and_no_io(module: str) -> None:
    wrong = [
        f"{found}, but it is to be pure"
        for found in imports_of(module)
        if found.top in IMPURE or found.what in IMPURE
    ]
    assert wrong == []


SANS_IO = [
    *("aiobus.mesh.answers", "aiobus.mesh.byes", "aiobus.mesh.doubts", "aiobus.mesh.fanout"),
    *("aiobus.mesh.interest", "aiobus.mesh.links", "aiobus.mesh.namesakes", "aiobus.mesh.peers"),
    *("aiobus.mesh.session", "aiobus.mesh.survey"),
]
"""The conversation of a mesh: bytes in, bytes and decisions out."""


@pytest.mark.parametrize("module", SANS_IO)
def test_the_conversation_of_a_mesh_owns_no_loop_and_no_socket(module: str) -> None:
    wrong = [
        f"{found}: what waits or has a timer belongs to aiobus.mesh.transport"
        for found in imports_of(module)
        if found.top in ("asyncio", "socket", "threading", "time", "zmq")
    ]
    assert wrong == []


def test_the_modules_are_few_enough_to_be_known() -> None:
    assert len(FILES) <= MOST_MODULES


def test_the_picture_of_the_design_has_every_module_in_its_package() -> None:
    text = (Path(__file__).parent.parent / "docs/design.md").read_text()
    picture = text.partition("## The picture")[2].split("```")[1]
    assert f"the\nmost modules there may be ({MOST_MODULES})" in text
    drawn, package = set(), ""
    for line in picture.splitlines():
        names = line[20:67]
        if not names.startswith(" "):
            package = ""
        for name in re.findall(r"\w+/?", names):
            if name.endswith("/"):
                package = name.replace("/", ".")
            else:
                drawn.add(f"aiobus.{package}{name}")
    modules = {name for name in FILES if "__" not in name}
    packages = {name.rpartition(".")[0] for name in modules}
    assert drawn - packages == modules - packages


def test_only_transports_import_zmq_and_no_other_module_pays_for_it() -> None:
    wrong = [
        f"{found} {found.when.value}; only modules of aiobus.mesh may"
        for found in IMPORTS
        if found.top == "zmq"
        and found.when is When.AT_ONCE
        and not found.module.startswith("aiobus.mesh.")
    ]
    assert wrong == []


def test_nothing_is_imported_but_the_standard_library_orjson_and_zmq() -> None:
    wrong = [
        f"{found}, which is no dependency"
        for found in IMPORTS
        if found.top not in sys.stdlib_module_names | DEPENDENCIES
        and not (found.when is When.NEVER and found.top in FOR_TYPES)
        and not (found.module in PLUGINS and found.top in FOR_PYTEST)
        and not (found.when is When.LATER and found.top in EXTRAS.get(found.module, set()))
        and not (found.module.startswith("aiobus.cli.") and is_for_commands(found))
    ]
    assert wrong == []


def is_for_commands(found: Import) -> bool:
    return found.top in FOR_COMMANDS or (
        found.when is When.LATER and found.top in LATER_FOR_COMMANDS
    )


def test_only_the_command_imports_the_modules_of_the_command() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.what.startswith("aiobus.cli")
        and not found.module.startswith("aiobus.cli.")
        and not (found.module == "aiobus.__main__" and found.when is When.LATER)
    ]
    assert wrong == []


# A Protocol is a seam, which has two sides: what asks, and at least two classes that answer.


def base_names(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).partition("[")[0] for base in node.bases]


def classes_of(trees: dict[str, ast.Module]) -> dict[str, list[ast.ClassDef]]:
    """Every class of the package by its name."""
    found: dict[str, list[ast.ClassDef]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def members_of(node: ast.ClassDef, classes: dict[str, list[ast.ClassDef]]) -> set[str]:
    """Methods, properties, and attributes that are declared or set in `__init__`; inherited ones
    as well.
    """
    found: set[str] = set()
    for base in base_names(node):
        for each in classes.get(base, []):
            found |= members_of(each, classes)
    for step in node.body:
        if isinstance(step, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(step.name)
            if step.name == "__init__":
                found |= {
                    inner.attr
                    for inner in ast.walk(step)
                    if isinstance(inner, ast.Attribute)
                    and isinstance(inner.ctx, ast.Store)
                    and ast.unparse(inner.value) == "self"
                }
        targets = step.targets if isinstance(step, ast.Assign) else []
        if isinstance(step, ast.AnnAssign):
            targets = [step.target]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def one_tenant_seams(trees: dict[str, ast.Module]) -> list[str]:
    """A sentence for each Protocol that has fewer than two classes behind it."""
    classes = classes_of(trees)
    everything = [node for nodes in classes.values() for node in nodes]
    protocols = [
        node
        for node in everything
        if "Protocol" in base_names(node) and node.name not in FOR_CHECKERS
    ]
    concrete = [node for node in everything if node not in protocols]
    wrong = []
    for seam in protocols:
        wanted = members_of(seam, classes)
        tenants = [node.name for node in concrete if wanted <= members_of(node, classes)]
        if len(tenants) < 2:
            who = " and ".join(tenants) or "no class"
            wrong.append(
                f"{seam.name} is a Protocol that only {who} of the package has all members of:"
                " use that class, or plain callables"
            )
    return wrong


def test_every_protocol_has_at_least_two_classes_behind_it() -> None:
    assert one_tenant_seams(TREES) == []


SEAMS = """
class Two(Protocol):
    name: str
    @property
    def size(self) -> int: ...
    def ask(self) -> None: ...
class One(Two, Protocol):
    def close(self) -> None: ...
class A:
    size = 1
    def __init__(self, name):
        self.name = name
    def ask(self): ...
class B(A):
    def close(self): ...
class C:
    name: str
    def ask(self): ...
"""


def test_a_protocol_with_one_class_behind_it_is_named_in_a_sentence() -> None:
    (sentence,) = one_tenant_seams({"aiobus.seams": ast.parse(SEAMS)})
    assert sentence == (
        "One is a Protocol that only B of the package has all members of: use that class, or plain"
        " callables"
    )


# The walker itself sees what it is there to see.

HIDDEN = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import zmq.asyncio
else:
    import zmq.green
def later():
    from aiobus import clock
    from aiobus import bus
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

"""What the package offers, and what each module says it does."""

import ast
import builtins
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, TypeVarTuple

import pytest

import aiobus

ROOT = Path(__file__).parents[1]
NAMES = [
    "aiobus",
    *(module.name for module in pkgutil.walk_packages(aiobus.__path__, "aiobus.")),
]
MODULES = {name: importlib.import_module(name) for name in NAMES if not name.endswith("__main__")}

OFFERED_MODULES = {"clock", "system", "types"}


def test_what_the_package_offers_is_exactly_its_public_names() -> None:
    public = {
        name
        for name, value in vars(aiobus).items()
        if not name.startswith("_")
        and (name in OFFERED_MODULES or not isinstance(value, ModuleType))
    }
    assert sorted(public) == sorted(aiobus.__all__)


def test_each_name_is_the_very_object_that_a_module_offers() -> None:
    offered = [
        name
        for name in aiobus.__all__
        for module in MODULES.values()
        if module is not aiobus
        and name in module.__all__
        and getattr(module, name) is getattr(aiobus, name)
    ]
    assert {*offered, *OFFERED_MODULES} == set(aiobus.__all__)


def test_every_error_is_offered() -> None:
    assert set(aiobus.errors.__all__) <= set(aiobus.__all__)


def test_everything_offered_is_documented() -> None:
    assert [name for name in aiobus.__all__ if not getattr(aiobus, name).__doc__] == []


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_every_module_says_what_it_owns_and_what_it_offers(module: ModuleType) -> None:
    assert module.__doc__
    assert module.__all__


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_everything_a_module_offers_exists(module: ModuleType) -> None:
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert [name for name in module.__all__ if name.startswith("_")] == []
    assert len(module.__all__) == len(set(module.__all__))


def test_the_version_is_that_of_the_distribution() -> None:
    """It is written down once, where a source tree that is not installed has it as well."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "aiobus/__init__.py"
    source = Path(aiobus.__file__).read_text()
    assert re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE) == [aiobus.__version__]
    assert re.fullmatch(r"\d+\.\d+\.\d+", aiobus.__version__)


# The types of signatures.

INTERNAL = {
    *("CatchUp", "Delivery", "Diagnostics", "Fit", "Found", "Gap", "Hand", "Hidden"),
    *("JournalPage", "LazyBatch", "Lifecycle", "Notifier", "Publisher", "Query", "Route", "Source"),
    *("Stage", "Standing", "SubscriptionOptions", "Taken", "Want"),
}
"""Types of what the package says to itself by methods of the classes that it offers: to the parts
of a transport, of a journal, of a keyring and of a subscription.
"""


def names_in(annotation: ast.expr) -> Iterator[str]:
    """The names in an annotation, also where it is a string."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                inner = ast.parse(node.value, mode="eval").body
            except SyntaxError:
                continue  # the text of a Literal
            yield from names_in(inner)


def annotations_of(tree: ast.stmt) -> Iterator[ast.expr]:
    """Those of a function, or of the public fields and methods of a class."""
    if isinstance(tree, ast.ClassDef):
        for step in tree.body:
            if isinstance(step, ast.AnnAssign) and not ast.unparse(step.target).startswith("_"):
                yield step.annotation
            name = getattr(step, "name", "_")
            if name == "__init__" or not name.startswith("_"):
                yield from annotations_of(step)
    elif isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
        given = tree.args
        rest = [each for each in (given.vararg, given.kwarg) if each is not None]
        for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, *rest):
            if each.annotation is not None:
                yield each.annotation
        if tree.returns is not None:
            yield tree.returns


def types_of(offered: Any) -> Iterator[tuple[str, Any]]:
    """The names in the public signatures of a class or a function, and what they stand for."""
    is_class = inspect.isclass(offered)
    for each in offered.__mro__ if is_class else [offered]:
        if not each.__module__.startswith("aiobus"):
            continue
        module = sys.modules[each.__module__]
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        for annotation in annotations_of(tree):
            for name in names_in(annotation):
                if hasattr(module, name) and not hasattr(builtins, name):
                    yield name, getattr(module, name)


def is_elsewhere(name: str, value: Any) -> bool:
    """True for what another package has under this name, and for what stands for any type."""
    home = sys.modules.get(str(getattr(value, "__module__", "")))
    is_foreign = home is not None and not home.__name__.startswith("aiobus")
    is_foreign = is_foreign and getattr(home, name, None) is value
    return is_foreign or isinstance(value, TypeVar | TypeVarTuple | ModuleType) or name == "log"


OFFERED = [
    *(getattr(aiobus, name) for name in aiobus.__all__),
    *(getattr(aiobus.types, name) for name in aiobus.types.__all__),
]
FOUND = {
    (name, f"{offered.__module__}.{offered.__qualname__}"): value
    for offered in OFFERED
    if (inspect.isclass(offered) or inspect.isfunction(offered))
    and offered.__module__.startswith("aiobus")
    for name, value in types_of(offered)
    if not is_elsewhere(name, value)
}


def test_each_type_in_a_public_signature_can_be_imported_by_its_name() -> None:
    public = {**vars(aiobus), **vars(aiobus.types)}
    missing = [
        f"{name}, in {where}"
        for (name, where), value in FOUND.items()
        if name not in INTERNAL and public.get(name) is not value
    ]
    assert missing == []


def test_the_search_for_types_finds_those_of_subscribe_and_of_tools() -> None:
    names = {name for name, _ in FOUND}
    wanted = {"Types", "Keys", "Where", "After", "Since", "Overflow", "Callback", "Keep", "Sync"}
    assert wanted | {"Peer", "Strategy", "Zone"} <= names


def test_what_is_internal_is_in_some_signature_and_is_not_offered() -> None:
    assert {name for name, _ in FOUND} >= INTERNAL
    assert not INTERNAL & {*aiobus.__all__, *aiobus.types.__all__}

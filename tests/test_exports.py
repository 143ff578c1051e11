"""What the package offers, and what each module says it does."""

import importlib
import pkgutil
from types import ModuleType

import pytest

import aiobus

NAMES = [
    "aiobus",
    *(module.name for module in pkgutil.walk_packages(aiobus.__path__, "aiobus.")),
]
MODULES = {name: importlib.import_module(name) for name in NAMES if not name.endswith("__main__")}


def test_what_the_package_offers_is_exactly_its_public_names() -> None:
    public = {
        name
        for name, value in vars(aiobus).items()
        if not name.startswith("_") and (name == "clock" or not isinstance(value, ModuleType))
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
    assert {*offered, "clock"} == set(aiobus.__all__)  # clock is a module


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

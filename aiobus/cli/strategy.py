"""A strategy that is named in a shell, and what it raised.

Owns how a strategy is imported, and the words for what that raised. Must not know what is done
with it.
"""

import importlib
import os
import sys
import traceback

from aiobus.errors import BusError
from aiobus.lockout import shut
from aiobus.replay.evidence import raised_at
from aiobus.replay.session import Bot

__all__ = ["parts_of", "strategy_named", "told"]


def strategy_named(text: str) -> Bot:
    """The coroutine function of a bus that `module:function` names. The module is imported from the
    working directory or the path of Python, and does not see the arguments of this command. Raises
    ValueError, with what the import raised and where.
    """
    module, function = parts_of(text)
    if (here := os.getcwd()) not in sys.path:  # a console script has its own folder there instead
        sys.path.insert(0, here)  # for good: a strategy may import what is beside it while it runs
    given, sys.argv = sys.argv, sys.argv[:1]
    try:
        with shut(f"importing {module}"):
            found: object = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # it runs any code
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{text!r}: {error} in {here}: go to its directory, or give that by PYTHONPATH"
            ) from None
        if isinstance(error, BusError):
            raise ValueError(f"{text!r}: {error}") from None
        raise ValueError(f"{text!r}: importing {module} raised {told(error)}") from error
    finally:
        sys.argv = given
    for name in function.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{text!r}: {module} has no {function}")
        found = getattr(found, name)
    if not callable(found):
        raise ValueError(f"{text!r} is no function")
    bot: Bot = found
    return bot


def parts_of(text: str) -> tuple[str, str]:
    """The module and the function of `module:function`. Raises ValueError for what is no such."""
    module, colon, function = text.partition(":")
    if not (module and colon and function):
        raise ValueError(f"{text!r}: a module and a function are needed, such as strategy:main")
    if module.endswith(".py") or os.sep in module:
        name = module.removesuffix(".py").replace(os.sep, ".")
        raise ValueError(f"{text!r}: a module is named without .py, such as {name}:{function}")
    return module, function


def told(error: BaseException) -> str:
    """The error, and the last line of code of the user's that led to it."""
    *_, said = traceback.format_exception_only(error)
    if isinstance(error, SyntaxError):
        return f"{said.strip()} at {error.filename}:{error.lineno}"
    return f"{said.strip()} at {where}" if (where := raised_at(error)) else said.strip()

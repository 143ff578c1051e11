"""The command `aiobus`, and `python -m aiobus`, which is the same. docs/command.md has all of it.

Owns what is said if the extra `cli` is not installed, and which commands do without it.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

__all__ = ["main"]

NEEDED = ("typer", "rich")
KEYS = ("keygen", "members")
"""Commands without the extra: a host on which only a bot runs needs them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else [*arguments]
    if words and words[0] in KEYS:
        from aiobus.cli import keys

        return keys.main(words)
    for name in NEEDED:
        if find_spec(name) is None:
            sys.stderr.write(f"the command aiobus needs {name}: pip install 'aiobus-zmq[cli]'\n")
            return 2
    try:
        from aiobus.cli import app

        return app.main(arguments)
    except KeyboardInterrupt:  # while the modules of the command were imported
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""The command `aiobus`: what a desk does, and what is in its files, in a shell. docs/command.md.

Owns what each command has: its function, and the help that teaches by example. Must not know what a
command does. All but `keys` needs the extra `cli`. It is imported by `aiobus.__main__` alone.
"""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["EVERY_CODE", "WIDTH", "Story"]

WIDTH = 78
EVERY_CODE = {2: "a wrong argument; nothing was done", 130: "ended by Ctrl-C"}
"""What these exit codes mean if a command says nothing else of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One command."""

    name: str
    run: Callable[..., int | None]
    """Returns the exit code; None is 0."""
    summary: str
    """Its line in `aiobus --help`."""
    examples: Mapping[str, str]
    """Lines for a shell, and what each does; "" if it speaks for itself."""
    codes: Mapping[int, str]
    """What its exit codes mean."""
    usage: str = ""
    """Its arguments in the first line of its help; "" for those that typer knows."""

    @property
    def every_code(self) -> dict[int, str]:
        """The same, with those of `EVERY_CODE` that it does not have."""
        return dict(sorted({**EVERY_CODE, **self.codes}.items()))

    @property
    def epilog(self) -> str:
        """The end of its help. `\\b` keeps the lines of a paragraph as they are."""
        lines = ["\b", "Examples:"]
        for example, what in self.examples.items():
            lines += [f"  # {what}"] if what else []
            lines.append(f"  {example}")
        lines += ["", "\b", "Exit codes:"]
        for code, meaning in self.every_code.items():
            lines += textwrap.wrap(
                meaning, WIDTH, initial_indent=f"  {code:<4} ", subsequent_indent=" " * 7
            )
        return "\n".join(lines)

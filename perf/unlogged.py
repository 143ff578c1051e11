"""What do the lines of the log cost while the log is off?

A copy of the package in which they are deleted, and an untouched copy, publish and handle in turns
the same events in one process. Goal: the untouched one costs at most 2 % more processor time for an
event (the median over many short rounds of the ratio within each, since the machine's pace changes
by more than that from one round to the next). Deleted are the calls of `log.debug`, `if`s that hold
nothing else, and what only asks whether the log is on. Owns the deleting; measuring is
`perf.desk`'s.
Run: python -m perf.unlogged
"""

import ast
import asyncio
import contextlib
import operator
import statistics
import sys
import tempfile
from pathlib import Path

from perf import copies
from perf.desk import Desk, Layout
from perf.systems import SYSTEMS

__all__ = ["GOAL", "delete", "measure"]

GOAL = 1.02
ROUNDS = 60
SECONDS = 0.15


class Deletion(ast.NodeTransformer):
    """Takes the lines out of a module."""

    def __init__(self) -> None:
        self.deleted = 0

    def _is_line(self, node: ast.stmt) -> bool:
        text = ast.unparse(node)
        if isinstance(node, ast.Expr):
            return text.startswith("log.debug(")
        if isinstance(node, ast.Assign):
            return text.endswith("= log.isEnabledFor(logging.DEBUG)")
        if isinstance(node, ast.If):
            return not node.orelse and all(map(self._is_line, node.body))
        return False

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Delete what is a line, and put `pass` where nothing is left."""
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for name in ("body", "orelse", "finalbody"):
                lines = getattr(node, name, [])
                kept = [line for line in lines if not self._is_line(line)]
                self.deleted += len(lines) - len(kept)
                setattr(node, name, kept or ([ast.Pass()] if lines else []))
        return super().generic_visit(node)


def delete(folder: Path) -> int:
    """Delete the lines of every module below; how many there were."""
    deleted = 0
    for path in folder.rglob("*.py"):
        deletion = Deletion()
        tree = ast.fix_missing_locations(deletion.visit(ast.parse(path.read_text())))
        if deletion.deleted:
            path.write_text(ast.unparse(tree))
        deleted += deletion.deleted
    return deleted


async def measure(rounds: int = ROUNDS) -> tuple[dict[str, list[float]], int]:
    """Microseconds an event of both, round by round, and how many lines were deleted."""
    costs: dict[str, list[float]] = {"with": [], "without": []}
    deleted = 0
    with tempfile.TemporaryDirectory(prefix="ab") as folder:
        async with contextlib.AsyncExitStack() as stack:
            desks = {}
            for name in costs:
                copy = Path(folder) / name
                copies.copy(copy)
                if name == "without":
                    deleted = delete(copy / "aiobus")
                system, layout = SYSTEMS["aiobus, inproc"], Layout(is_shared=True)
                desks[name] = await stack.enter_async_context(Desk.open(system, layout, copy))
                await desks[name].throughput(SECONDS)
            for number in range(rounds):
                for name in list(costs)[:: 1 if number % 2 else -1]:
                    costs[name].append((await desks[name].throughput(SECONDS))["publisher_us"])
    return costs, deleted


def main() -> int:
    """Print one line; 1 when the goal is missed."""
    costs, deleted = asyncio.run(measure())
    mine, theirs = (statistics.median(costs[name]) for name in ("with", "without"))
    ratio = statistics.median(map(operator.truediv, costs["with"], costs["without"]))
    is_missed = ratio > GOAL
    print(
        f"unlogged   {deleted} lines deleted  with {mine:.3f} us an event"
        f"  without {theirs:.3f}  {ratio:6.1%}  goal 102 %:"
        f" {'missed' if is_missed else 'held'}"
    )
    return int(is_missed)


if __name__ == "__main__":
    sys.exit(main())

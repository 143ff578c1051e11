"""The figures of one run: by case, system and name, one value a round.

Owns their form as JSON, and the medians, which are what is compared. Must not know what they mean.
"""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "Results"]

Place = tuple[str, str, str]
"""Case, system and name of a figure."""

FOLDER = Path(__file__).parent / "results"


@dataclass(slots=True)
class Results:
    """The results so far."""

    machine: dict[str, Any] = field(default_factory=dict)
    mode: str = ""
    seconds: float = 0.0
    """How long the run took."""
    figures: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    curves: dict[str, dict[str, list[list[list[float]]]]] = field(default_factory=dict)
    """Of each case and system, round by round: [percent, microseconds] of its latencies."""
    absent: dict[str, str] = field(default_factory=dict)
    """Systems that could not be measured, and why."""
    failed: dict[str, str] = field(default_factory=dict)
    """`case / system` that broke, and how."""
    profiles: dict[str, list[str]] = field(default_factory=dict)
    """Where the time goes, by what was profiled, a line each."""

    def add(self, case: str, system: str, measured: dict[str, Any]) -> None:
        """One round."""
        figures = self.figures.setdefault(case, {}).setdefault(system, {})
        for name, value in measured.items():
            if name == "quantiles":
                self.curves.setdefault(case, {}).setdefault(system, []).append(value)
            else:
                figures.setdefault(name, []).append(value)

    def median(self, case: str, system: str, name: str) -> float | None:
        """The median of the rounds; None when it was not measured."""
        values = self.figures.get(case, {}).get(system, {}).get(name)
        return statistics.median(values) if values else None

    def paired(self, one: Place, other: Place) -> float | None:
        """One figure as a multiple of another of the same round, the median over the rounds: for
        differences smaller than those of a machine that changes its pace from round to round.
        """
        some, others = (
            self.figures.get(case, {}).get(system, {}).get(name, [])
            for case, system, name in (one, other)
        )
        ratios = [mine / its for mine, its in zip(some, others, strict=False) if its]
        return statistics.median(ratios) if ratios else None

    def spread(self, case: str, system: str, name: str) -> tuple[float, float] | None:
        """The smallest and the largest of the rounds."""
        values = self.figures.get(case, {}).get(system, {}).get(name)
        return (min(values), max(values)) if values else None

    def best(self, case: str, systems: list[str], name: str) -> float | None:
        """The smallest median of these systems that were measured."""
        found = [self.median(case, system, name) for system in systems]
        return min((value for value in found if value is not None), default=None)

    def cases(self) -> Iterator[str]:
        """In the order measured."""
        return iter(self.figures)

    def write(self, path: Path) -> None:
        """As JSON, with figures that are not more exact than they can be."""
        path.parent.mkdir(exist_ok=True)
        known = {name: _rounded(getattr(self, name)) for name in self.__slots__}
        path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")

    @staticmethod
    def read(path: Path) -> "Results":
        """The results in a file."""
        return Results(**json.loads(path.read_text()))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return value

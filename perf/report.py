"""The figures as a person reads them: a table for each case, and the goals with their verdicts.

Owns the wording, as Markdown that also reads well in a terminal. Must not know how anything was
measured. Run: python -m perf.report perf/results/full.json
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from perf.goals import judge
from perf.results import Results
from perf.systems import SYSTEMS

__all__ = ["README", "insert", "lines"]

README = Path(__file__).parent / "README.md"
MARK = "<!-- {} {} -->"

COLUMNS = [
    ("rate", "events/s", "{:,.0f}"),
    ("p50", "p50", "{:,.1f}"),
    ("p90", "p90", "{:,.1f}"),
    ("p99", "p99", "{:,.1f}"),
    ("p99.9", "p99.9", "{:,.1f}"),
    ("max", "max", "{:,.0f}"),
    ("late", "late", "{:,.0f}"),
    ("bytes_each", "bytes for each match", "{:,.0f}"),
    ("overhead", "x its encoding", "{:.2f}"),
    ("publisher_us", "publisher us", "{:.2f}"),
    ("subscriber_us", "subscriber us", "{:.2f}"),
    ("server_us", "server us", "{:.2f}"),
    ("publisher_growth", "publisher grew MiB", "{:.1f}"),
    ("subscriber_growth", "subscriber grew MiB", "{:.1f}"),
    ("server_growth", "server grew MiB", "{:.1f}"),
    ("lost", "lost", "{:,.0f}"),
    ("us", "us", "{:.3f}"),
    ("modules", "modules", "{:,.0f}"),
    ("calls", "Python calls", "{:,.1f}"),
    ("c_calls", "C calls", "{:,.1f}"),
    ("changes", "changes of module", "{:,.1f}"),
]
GROWTH = ("publisher_growth", "subscriber_growth")


def lines(results: Results) -> Iterator[str]:
    """All of it."""
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield f"Commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores,"
    yield f"{machine['system']}, load {machine['load'][0]:.1f} at the start. {versions}."
    yield f"{results.mode.capitalize()} run of {results.seconds / 60:.1f} minutes."
    yield ""
    yield from goal_lines(results)
    for case in results.cases():
        yield ""
        yield from case_lines(results, case)
    for title, found in (("Absent", results.absent), ("Failed", results.failed)):
        if found:
            yield ""
            yield f"{title}:"
            yield ""
            yield from (f"- {name}: {reason}" for name, reason in found.items())
    for what, found_lines in results.profiles.items():
        yield ""
        yield f"Where the time goes: {what}"
        yield ""
        yield from (f"    {line}" for line in found_lines)


def goal_lines(results: Results) -> Iterator[str]:
    """The goals."""
    rows = [["goal", "is to be", "stretch", "is", "verdict"]]
    for verdict in judge(results):
        goal, value = verdict.goal, verdict.value
        sign = ">=" if goal.is_least else "<="
        is_to_be = f"{sign} {goal.limit:g}{goal.unit}"
        stretch = "" if goal.stretch is None else f"{goal.stretch:g}{goal.unit}"
        if value is None:
            rows.append([goal.text, is_to_be, stretch, "", "not measured"])
            continue
        found = f"{value:.{2 if abs(value) < 10 else 1}f}{goal.unit}"
        said = "held, stretch too" if verdict.stretched else "held"
        rows.append([goal.text, is_to_be, stretch, found, said if verdict.held else "**missed**"])
    yield from _table(rows)


def case_lines(results: Results, case: str) -> Iterator[str]:
    """A row for each system, in the order of their list, medians of the rounds."""
    found, order = results.figures[case], list(SYSTEMS)
    systems = {name: found[name] for name in order if name in found}
    systems |= {name: figures for name, figures in found.items() if name not in systems}
    columns = [
        column
        for column in COLUMNS
        if any(column[0] in figures for figures in systems.values())
        and (column[0] not in GROWTH or case == "a million events")
        and (column[0] != "server_us" or any(map(_has_server, systems.values())))
    ]
    yield f"**{case}**"
    yield ""
    rows = [["system", *(title for _, title, _ in columns)]]
    for system in systems:
        cells = [system]
        for name, _, form in columns:
            median = results.median(case, system, name)
            cells.append("" if median is None else form.format(median))
            if name == "rate" and (spread := results.spread(case, system, name)) is not None:
                cells[-1] += f" ({spread[0]:,.0f}-{spread[1]:,.0f})"
        rows.append(cells)
    yield from _table(rows)


def _has_server(figures: dict[str, list[float]]) -> bool:
    return any(figures.get("server_us", []))


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            dashes = [
                "-" * width if place == 0 else "-" * (width - 1) + ":"
                for place, width in enumerate(widths)
            ]
            yield f"| {' | '.join(dashes)} |"


def insert(text: str, name: str, found: list[str]) -> str:
    """`text` with `found` between the marks of `name`. Raises ValueError where there are none."""
    begin, end = MARK.format("begin", name), MARK.format("end", name)
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there is no place for a {name} run: no {begin}")
    body = "\n".join([begin, "", *found, "", end])
    return pattern.sub(lambda _: body, text)


def main() -> None:
    """Print a run, or put it into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--readme", action="store_true", help="put it into perf/README.md")
    given = parser.parse_args()
    found = list(lines(Results.read(given.path)))
    if given.readme:
        README.write_text(insert(README.read_text(), given.path.stem, found))
    else:
        print("\n".join(found))


if __name__ == "__main__":
    main()

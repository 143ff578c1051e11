"""The figures as pictures: throughput by system, latency distributions, growth curves.

The only module that knows matplotlib. Must not know how anything was measured.
Run: python -m perf.plots perf/results/full.json
"""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot, ticker

from perf.results import FOLDER, Results

__all__ = ["draw"]

mpl.use("Agg")

COLOURS = {
    "aiobus": "#c0392b",
    "zmq.asyncio": "#2c3e50",
    "pyzmq": "#7f8c8d",
    "nats-py": "#2980b9",
    "redis-py": "#8e44ad",
    "zenoh": "#27ae60",
    "codec floor": "#bdc3c7",
    "blinker": "#16a085",
    "pyee": "#d35400",
    "bubus": "#f39c12",
    "asyncio.Queue": "#34495e",
}
SERIES = [
    # The titles end in what varies, which is the x axis.
    ("fan-out to (.*)", "rate", "fan-out: subscribers", "events/s to each subscriber"),
    ("fan-in of (.*)", "rate", "fan-in: publishers", "events/s together"),
    ("payload of (.*)", "rate", "payload", "events/s"),
    ("(.*) unmatched, in process", "publisher_us", "unmatched, in process", "us of CPU an event"),
    ("(.*) unmatched, across", "publisher_us", "unmatched, across", "publisher's us of CPU"),
]


def draw(results: Results, folder: Path = FOLDER) -> list[Path]:
    """All pictures of what was measured; the files."""
    folder.mkdir(exist_ok=True)
    pictures: dict[str, Callable[[Results], Any]] = {
        "throughput": throughput,
        "latency": latency,
        "growth": growth,
    }
    paths = []
    for name, picture in pictures.items():
        figure = picture(results)
        if figure is None:
            continue
        figure.suptitle(
            f"aiobus {results.machine['commit']}, {results.machine['cpu']}, "
            f"{results.machine['cores']} cores; medians",
            fontsize=8,
            y=1.02,
        )
        path = folder / f"{results.mode}-{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight")
        pyplot.close(figure)
        paths.append(path)
    return paths


def throughput(results: Results) -> Any:
    """Bars, with the range of the rounds."""
    cases = [
        case
        for case in ("throughput, 1 key", "throughput, 100 keys x 4 types", "in process")
        if case in results.figures
    ]
    if not cases:
        return None
    figure, axes = pyplot.subplots(len(cases), 1, figsize=(9, 3.2 * len(cases)), squeeze=False)
    for axis, case in zip(axes[:, 0], cases, strict=True):
        rates = {system: results.median(case, system, "rate") for system in results.figures[case]}
        known = sorted((rate, system) for system, rate in rates.items() if rate is not None)
        for place, (rate, system) in enumerate(known):
            low, high = results.spread(case, system, "rate") or (rate, rate)
            axis.barh(
                place,
                rate,
                xerr=[[rate - low], [high - rate]],
                color=_colour(system),
                error_kw={"lw": 0.8, "capsize": 2},
            )
            axis.text(high * 1.08, place, f"{rate:,.0f}", va="center", fontsize=8)
        axis.set_yticks(range(len(known)), [system for _, system in known], fontsize=8)
        axis.set_xscale("log")
        # From a power of ten on, or the length of the bars would depend on the slowest.
        axis.set_xlim(10 ** math.floor(math.log10(known[0][0])), 3.5 * known[-1][0])
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_xlabel("events handled a second (log scale)", fontsize=8)
        axis.set_title(case, fontsize=10)
    figure.tight_layout()
    return figure


def latency(results: Results) -> Any:
    """Delay by percentile, both on logarithmic scales, out to 99.9 %."""
    cases = [case for case in results.curves if results.curves[case]]
    if not cases:
        return None
    figure, axes = pyplot.subplots(1, len(cases), figsize=(5.2 * len(cases), 4.6), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        for system, rounds in results.curves[case].items():
            shares = [share for share, _ in rounds[0] if share <= 99.9]
            delays = [sorted(each[place][1] for each in rounds) for place in range(len(shares))]
            axis.plot(
                [1 / (1 - share / 100) for share in shares],
                [each[len(each) // 2] for each in delays],
                label=system,
                color=_colour(system),
                linestyle=_line(system),
                lw=2.2 if system in ("aiobus", "aiobus, inproc") else 1.2,
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        marks = [50, 90, 99, 99.9]
        axis.set_xticks([1 / (1 - mark / 100) for mark in marks], [f"{mark:g} %" for mark in marks])
        axis.minorticks_on()
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.grid(visible=True, which="major", alpha=0.3)
        axis.set_title(case, fontsize=10)
        axis.set_xlabel("share of the events", fontsize=8)
        axis.set_ylabel("one way, us", fontsize=8)
        axis.legend(framealpha=0.5, fontsize=7)
    figure.tight_layout()
    return figure


def growth(results: Results) -> Any:
    """The effect of more subscribers, publishers, bytes or subscriptions."""
    found = [(series, _points(results, *series[:2])) for series in SERIES]
    found = [(series, points) for series, points in found if points]
    if not found:
        return None
    figure, axes = pyplot.subplots(1, len(found), figsize=(4.2 * len(found), 3.8), squeeze=False)
    for axis, ((_, _, title, unit), points) in zip(axes[0], found, strict=True):
        for system, curve in points.items():
            axis.plot(
                [label for label, _ in curve],
                [value for _, value in curve],
                "o-",
                label=system,
                color=_colour(system),
                lw=2.2 if system.startswith("aiobus") else 1.2,
                ms=4,
            )
        axis.set_yscale("log" if "events/s" in unit else "linear")
        if "events/s" not in unit:
            axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit, fontsize=8)
        axis.grid(visible=True, alpha=0.3)
        axis.legend(framealpha=0.5, fontsize=7)
    figure.tight_layout()
    return figure


def _points(results: Results, pattern: str, name: str) -> dict[str, list[tuple[str, float]]]:
    points: dict[str, list[tuple[str, float]]] = {}
    for case in results.cases():
        if found := re.fullmatch(pattern, case):
            for system in results.figures[case]:
                value = results.median(case, system, name)
                if value is not None:
                    points.setdefault(system, []).append((found[1], value))
    for curve in points.values():  # cases that are counts are not always measured in order
        curve.sort(key=lambda point: int(point[0]) if point[0].isdigit() else 0)
    return points


def _colour(system: str) -> str:
    return COLOURS.get(system, COLOURS.get(system.partition(",")[0], "#95a5a6"))


def _line(system: str) -> str:
    return "--" if ", " in system and system != "aiobus, inproc" else "-"


def main() -> None:
    """Draw a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    given = parser.parse_args()
    for path in draw(Results.read(given.path)):
        print(path)


if __name__ == "__main__":
    main()

"""What a soak came to, as a page. Owns the wording of `RESULTS.md`; decides nothing."""

import platform
import subprocess
import time
from pathlib import Path

import zmq

from faults.mix import MIB, Mix
from faults.scenario import Result, Scenario

__all__ = ["render"]

KEY = """
*Owed*: events times subscriptions that were to have them. Each was *delivered*; or *dropped* and
counted, by a policy that the subscription chose; or in a *gap* that was reported; or is in the
*tail*: the last words of a process that was killed, or to one that was killed or left, of which
nobody can know. *Recovery*: the longest time from the end of a fault until everybody had
everything.
""".strip().splitlines()
COLUMNS = (
    "scenario|size|rounds|of|published|owed|delivered|dropped|gaps|in gaps|tail|recovery|violations"
)
HEAD = [f"|{COLUMNS}|", "| --- | --- " + "| ---: " * 10 + "| --- |"]
MIX_COLUMNS = (
    "process of the mix|MiB first|last|most|growth per minute in the second half"
    "|descriptors first|last|most"
)
MIX_HEAD = [f"|{MIX_COLUMNS}|", "| --- " + "| ---: " * 7 + "|"]


def render(
    results: dict[Scenario, Result],
    mixed: tuple[Result, Mix | None],
    seconds: float,
    seed: int,
    begun: float,
) -> str:
    """The page."""
    result, mix = mixed
    failures = [text for each in (*results.values(), result) for text in each.failures]
    minutes = (time.time() - begun) / 60
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(begun))
    commit = _said("git", "rev-parse", "--short", "HEAD")
    python, system = platform.python_version(), f"{platform.system()} {platform.release()}"
    libraries = f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}"
    lines = [
        "# The last soak",
        "",
        f"{when} UTC, {minutes:.0f} minutes, commit {commit}, seed {seed}.",
        f"{_processor()}; {system}; Python {python}; {libraries}.",
        "",
        *KEY,
        "",
        *HEAD,
    ]
    for scenario, each in results.items():
        sizes = ", ".join(sorted(size for size in each.sizes if size))
        lines.append(_row(scenario.title, sizes, str(scenario.soak), each))
    lines.append(_row("mix of faults", f"{seconds:.0f} s", "", result))
    if mix is not None:
        done = ", ".join(f"{count} x {name}" for name, count in sorted(mix.done.items()))
        lines += ["", f"The mix: {done}.", ""]
        lines += MIX_HEAD
        for name, samples in mix.samples.items():
            memory = [each[1] / MIB for each in samples.taken]
            files = [each[2] for each in samples.taken]
            lines.append(
                f"| {name} | {memory[0]:.1f} | {memory[-1]:.1f} | {max(memory):.1f}"
                f" | {samples.growth():+.2f} | {files[0]} | {files[-1]} | {max(files)} |"
            )
    lines += ["", "## Violations", ""]
    lines += [f"- {text}" for text in failures] or ["None."]
    return "\n".join(lines) + "\n"


def _row(title: str, size: str, asked: str, result: Result) -> str:
    sums = result.sums
    counts = ("published", "owed", "delivered", "dropped", "gaps", "lost", "tail")
    figures = " | ".join(f"{sums[name]:,}" for name in counts)
    longest = f"{max(result.recoveries):.2f} s" if result.recoveries else ""
    violations = ", ".join(f"{count} x {kind}" for kind, count in result.violations.items())
    return (
        f"| {title} | {size} | {result.rounds} | {asked} | {figures} | {longest}"
        f" | {violations or 'none'} |"
    )


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()

"""What a soak came to, as a page. Owns the wording of `RESULTS.md`; decides nothing."""

import platform
import time
from pathlib import Path

import zmq

from faults.mix import MIB, OVER, Mix
from faults.scenario import Result, Scenario

__all__ = ["render"]

KEY = """
*Owed*: events times subscriptions that were to have them. Each was *delivered*; or *dropped* and
counted, by a policy that the subscription chose; or in a *gap* that was reported; or is in the
*tail*: the last words of a process that was killed, or to one that was killed or left, of which
nothing is known. One that was killed or left goes on being owed what is published after that, which
is nearly all of the tail of the mix. *Recovery*: the longest time from the end of a fault until
each had everything, while the publishers rest; where many ask for all of history, the longest
wait of a live event meanwhile; empty where nothing was timed. *Over* memory the bots are in one
process, and the network in between loses, repeats and disorders by seed.
""".strip().splitlines()
COLUMNS = (
    "scenario|over|size|rounds|of|published|owed|delivered|dropped|gaps|in gaps|tail|recovery"
    "|violations"
)
HEAD = [f"|{COLUMNS}|", "| --- | --- | --- " + "| ---: " * 10 + "| --- |"]
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
    commit: str,
) -> str:
    """The page."""
    result, mix = mixed
    failures = [text for each in (*results.values(), result) for text in each.failures]
    minutes = (time.time() - begun) / 60
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(begun))
    python, system = platform.python_version(), f"{platform.system()} {platform.release()}"
    libraries = f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}"
    lines = [
        "# The last soak",
        "",
        f"{when} UTC, {minutes:.1f} minutes, commit {commit}, seed {seed}.",
        f"{_processor()}; {system}; Python {python}; {libraries}.",
        "",
        *KEY,
        "",
        *HEAD,
    ]
    for scenario, each in results.items():
        sizes = ", ".join(sorted(size for size in each.sizes if size))
        over = ", ".join(scenario.transports)
        lines.append(_row(scenario.title, over, sizes, str(scenario.soak), each))
    lines.append(_row("mix of faults", OVER, f"{seconds:.0f} s", "", result))
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


def _row(title: str, over: str, size: str, asked: str, result: Result) -> str:
    sums = result.sums
    counts = ("published", "owed", "delivered", "dropped", "gaps", "lost", "tail")
    figures = " | ".join(f"{sums[name]:,}" for name in counts)
    longest = f"{max(result.recoveries):.2f} s" if result.recoveries else ""
    violations = ", ".join(f"{count} x {kind}" for kind, count in result.violations.items())
    return (
        f"| {title} | {over} | {size} | {result.rounds} | {asked} | {figures} | {longest}"
        f" | {violations or 'none'} |"
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()

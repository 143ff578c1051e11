"""What the recordings of a session tell when the session is over."""

from pathlib import Path

from aiobus import EventType, Journal, explain, verify
from strategy import strategy


def tell(recording: Path, tape: Path) -> None:
    """Show how the last fill came about, and whether the strategy, run again on what it was given,
    decides the same.
    """
    if recording.exists():  # else it was Ctrl-C, before the recorder was there
        _explain_last_fill(recording)
    if tape.exists():
        print("\nthe strategy once more, on what it was given:\n")
        print(verify(tape, strategy), flush=True)


def _explain_last_fill(recording: Path) -> None:
    with Journal(recording) as journal:
        fills = [event for _, event in journal.read(types=EventType.FILL)]
    if fills:
        print(f"\nfrom the recording, the last of {len(fills)} fills:\n")
        print(explain(recording, fills[-1].id), flush=True)

"""What the recording of a session tells when the session is over."""

from pathlib import Path

from aiobus import EventType, Journal, explain


def tell(recording: Path) -> None:
    """Show how the last fill came about. Nothing without a fill."""
    if not recording.exists():
        return  # Ctrl-C, before the recorder was there
    with Journal(recording) as journal:
        fills = [event for _, event in journal.read(types=EventType.FILL)]
    if fills:
        print(f"\nfrom the recording, the last of {len(fills)} fills:\n")
        print(explain(recording, fills[-1].id), flush=True)

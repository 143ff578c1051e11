"""What can be done with a recorded session. docs/replay.md has the promises.

Owns the list of its modules, of which `aiobus` has the public names. Imports none of them.
"""

__all__ = [
    "attach", "explain", "explanation", "files", "hops", "moments", "player", "report",
    "republish", "schedule", "selection", "session", "stage", "tape", "transport", "verify",
    "what_if",
]  # fmt: skip

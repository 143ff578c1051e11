"""What can be done with a recorded session. docs/replay.md has the promises.

Owns the list of its modules, of which `aiobus` has the public names. Imports none of them.
"""

__all__ = [
    "command",
    "explain",
    "explanation",
    "files",
    "hops",
    "moments",
    "republish",
    "selection",
    "session",
    "stage",
    "transport",
    "what_if",
]

"""The command `aiobus`: what a desk does, and what is in its files, in a shell. docs/command.md.

Owns the list of its modules: one for each command or pair of commands, and what they share. It
needs the extra `cli`, and is imported by `aiobus.__main__` alone. Imports none of them.
"""

__all__ = [
    "app", "arguments", "bench", "demo", "desk", "doctor", "explain", "expression", "files",
    "findings", "peers", "publish", "record", "replay", "session", "story", "strategy", "tail",
    "terminal", "verify",
]  # fmt: skip

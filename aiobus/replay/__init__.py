"""What can be done with a session that was recorded. docs/replay.md has the promises.

Owns the list of its modules, which `aiobus` has the public names of.
"""

__all__ = ["explain", "explanation", "files", "hops", "moments"]

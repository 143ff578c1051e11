"""What can be done with a recorded session. docs/replay.md has the promises.

Imports none of its modules: `aiobus` has the public names of them.
"""

__all__: list[str] = []

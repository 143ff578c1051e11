"""A bot as a process of its own, by `aiobus.run`. docs/design.md says why it ends in this order.

Owns the list of its modules. Imports none of them.
"""

__all__ = ["ending", "process", "service", "tasks"]

"""A recorded session once more: its tape, and what is made of it.

Owns the public names. docs/replay.md has the promises.
"""

from aiobus.replay.report import Difference, Report

__all__ = ["Difference", "Report"]

"""For tests of strategies: a network in memory with seeded faults, and fixtures for pytest.

Owns nothing but the names. `pytest_plugins = ["aiobus.testing"]` in a conftest.py adds the fixtures
`bus`, `network` and `virtual_time`; without pytest, everything else here works as well.
docs/testing.md shows how.

PYTEST_DONT_REWRITE: nothing is asserted here, and a conftest may import it before it is a plugin.
"""

from aiobus.replay.verify import assert_replays
from aiobus.testing.network import Faults, MemoryNetwork, Message

__all__ = ["Faults", "MemoryNetwork", "Message", "assert_replays"]

pytest_plugins = ["aiobus.testing.plugin"]

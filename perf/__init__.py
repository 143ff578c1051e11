"""Measurements that assert a figure. Not part of the test suite: `make perf` runs them."""

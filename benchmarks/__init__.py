"""Benchmarks: `python -m benchmarks.NAME [--json]` prints work, ours, peer, ratio, bar and whether it was met."""

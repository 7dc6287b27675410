"""Benchmarks of the compiler; run each from the repository's root: `python -m benchmarks.NAME`.

Figures measured with them are in docs/measurements. Everything they write goes into build/bench.
"""

"""Benchmarks: each module prints its tables; ``docs/performance.md`` says how they were run."""

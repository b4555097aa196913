"""Benchmarks of the data pipeline; each prints Markdown tables and the machine they were made on.

All sides of a table run in turn, round after round, on one machine, so that a busy moment falls on
all of them. Medians over the rounds. Never part of the tests.

    python -m data_pipeline.bench.fetch --venvs DIR        (made by peers.sh)
    python -m data_pipeline.bench.tokenization
    python -m data_pipeline.bench.order
    python -m data_pipeline.bench.search --tokens 1000000000
    python -m data_pipeline.bench.loader
    python -m data_pipeline.bench.build_large --size 1000 --dir DIR
"""

"""Text to tokens to shards to token order to batches: everything that decides what a model reads.

Guarantees: what step t reads is a pure function of the shard index and one seed; it does not
depend on the model, the hardware, the number of workers or the length of the run, and every byte
of it is covered by one digest (``docs/spec/index.md``, ``docs/spec/order.md``).

Imports nothing of the other packages, so that a suite can be verified without the trainer.
"""

"""What a checkpoint is.

Files, digests, the chained ledger, the local Hub. Readable without the trainer.
"""

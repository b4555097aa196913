"""What a checkpoint is: files, digests, the chained ledger, the local Hub.

Readable without the trainer.
"""

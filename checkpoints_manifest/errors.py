"""The one exception of this package."""


class CheckpointError(RuntimeError):
    """A checkpoint, ledger or Hub is not what it says.

    Names the file, expected, found and what to do.
    """

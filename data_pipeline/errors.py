"""The one exception of this package for data that is not what it should be."""


class DatasetError(ValueError):
    """A source, shard, index or order differs from its record.

    The message names the file, what was expected, what was found and what to do.
    """

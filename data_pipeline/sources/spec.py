"""The recipe of a source, checked: every key known, every value of its type, defaults in one place.

Errors name the source, the key, what was expected, what was found and what to do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import DatasetError


class Spec:
    """One source of a recipe."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        """Keep the recipe; ``expect_keys`` and the readers below check it."""
        self._data = dict(data)
        self.kind = str(data.get("kind"))

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def fail(self, key: str, expected: str, found: object, remedy: str = "") -> DatasetError:
        """Return the error for a key."""
        return DatasetError(
            f"source.{key} ({self.kind}): expected {expected}, found {found!r}"
            + (f"; {remedy}" if remedy else "")
        )

    def expect_keys(self, required: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
        """Check the keys.

        Raises:
            DatasetError: A key that is missing or unknown; the message lists the allowed ones.
        """
        found, allowed = set(self._data) - {"kind"}, {*required, *optional}
        missing, unknown = set(required) - found, found - allowed
        if missing or unknown:
            raise DatasetError(
                f"source ({self.kind}): expected the keys {sorted(required)} and, where wanted, "
                f"{sorted(optional)}; missing {sorted(missing)}, "
                f"unknown {sorted(map(str, unknown))}"
            )

    def text(self, key: str, default: str = "") -> str:
        """Return a string that is not empty, on one line.

        Raises:
            DatasetError: Something else.
        """
        value = self._data.get(key, default)
        if not isinstance(value, str) or not value or "\n" in value:
            raise self.fail(key, "a string", value)
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a string as ``text`` does, or None where the key is left out or null."""
        return None if self._data.get(key) is None else self.text(key)

    def texts(self, key: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        """Return a list of strings, each of them once.

        Raises:
            DatasetError: Something else.
        """
        value = self._data.get(key, default)
        if (
            not isinstance(value, Sequence)
            or isinstance(value, str)
            or not all(isinstance(item, str) and item for item in value)
        ):
            raise self.fail(key, "a list of strings", value, "write it as [a, b]")
        if len(set(value)) < len(value):
            raise self.fail(key, "every entry once", list(value), "take the repeated one out")
        return tuple(value)

    def size(self, key: str, default: int) -> int:
        """Return an integer of at least 1.

        Raises:
            DatasetError: Something else.
        """
        value = self._data.get(key, default)
        if type(value) is not int or value < 1:
            raise self.fail(key, "an integer of at least 1", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false.

        Raises:
            DatasetError: Something else.
        """
        value = self._data.get(key, default)
        if type(value) is not bool:
            raise self.fail(key, "true or false", value)
        return value

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        """Return one of ``choices``.

        Raises:
            DatasetError: Something else.
        """
        value = self._data.get(key, default)
        if value not in choices:
            raise self.fail(key, f"one of {list(choices)}", value)
        return str(value)

    def items(self, key: str) -> list["Spec"]:
        """Return a list of mappings, as specs of the same kind.

        Raises:
            DatasetError: Something else, or an empty list.
        """
        value = self._data[key]
        if (
            not isinstance(value, Sequence)
            or isinstance(value, str)
            or not value
            or not all(isinstance(item, Mapping) for item in value)
        ):
            raise self.fail(key, "a list of mappings", value)
        return [Spec({**item, "kind": f"{self.kind}, {key}[{i}]"}) for i, item in enumerate(value)]

    def root(self, key: str = "root") -> Path:
        """Return an existing directory.

        Raises:
            DatasetError: Something else.
        """
        value = self._data.get(key)
        if not isinstance(value, str | Path) or not Path(value).is_dir():
            raise self.fail(key, "a directory", str(value), "correct the path")
        return Path(value)

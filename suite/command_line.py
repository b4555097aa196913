"""How `tripod` grows: every package adds its commands to one table.

`add("data build", run, help, example)` makes a command of two words; the group appears by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

Run = Callable[[argparse.Namespace], int]

GROUPS = {
    "data": "build, verify, describe and index datasets",
    "verify": "recompute and compare; names the first divergence",
    "prove": "prove one step of the token order, and check such a proof",
    "overlay": "plan and write overlays: canaries, replaced documents",
    "hub": "look after a local Hub",
}


class CommandTable:
    """The subcommands of one parser, in the order in which they were added."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        """Prepare an empty table."""
        self._commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        self._groups: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}

    def add(self, name: str, run: Run, text: str, example: str) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: one word, or a group of `GROUPS` and a word.
            run: called with the parsed arguments; returns the exit status.
            text: one line for `--help`.
            example: the command line after `tripod`.

        Returns:
            The parser, for the command's own arguments.
        """
        *group, word = name.split()
        commands = self._group(group[0]) if group else self._commands
        sub = commands.add_parser(
            word, help=text, description=text, epilog=f"example: tripod {example}"
        )
        sub.set_defaults(run=run)
        return sub

    def _group(self, name: str) -> argparse._SubParsersAction[argparse.ArgumentParser]:
        if name not in self._groups:
            parser = self._commands.add_parser(name, help=GROUPS[name], description=GROUPS[name])
            self._groups[name] = parser.add_subparsers(
                dest="subcommand", required=True, metavar="COMMAND"
            )
        return self._groups[name]

"""Run one command of a module as the command line would."""

import argparse


def run_command(add_commands, *words):
    """Parse the words with the commands that ``add_commands`` adds; return the exit status."""
    commands = {}

    def add(name, run, text, example):
        parser = argparse.ArgumentParser(prog=name, description=text, epilog=example)
        parser.set_defaults(run=run)
        commands[name] = parser
        return parser

    add_commands(add)
    name, rest = " ".join(map(str, words[:2])), [str(word) for word in words[2:]]
    arguments = commands[name].parse_args(rest)
    return arguments.run(arguments)

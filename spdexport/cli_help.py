"""Commands whose ``--help`` has their options in groups, and examples at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Any], Any]


class Command(click.Command):
    """A command whose ``--help`` has its options in groups, with what each group is about above it."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups in the order in which the command takes them."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(vars(parameter).get(_GROUP, OTHERS), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def command(short_help: str, *examples: str) -> Callable[[Callable[..., Any]], Command]:
    """Return the decorator of a command.

    Args:
        short_help: Its line among the commands.
        *examples: Command lines that ``--help`` ends with.
    """
    shown = "\n".join(f"  {example}" for example in examples)
    return click.command(None, Command, short_help=short_help, epilog=f"\b\nExamples:\n{shown}" if examples else None)


_GROUP = "group"
OTHERS = "Options"
"""The group of options that are in none."""


def together(title: str, *options: Callable[[Any], Any]) -> Decorator:
    """Return one decorator of several options, which ``--help`` shows in the order given below a title.

    What is in a group already stays there.
    """

    def decorate(command: Any) -> Any:
        before = len(getattr(command, "__click_params__", ()))
        for option in reversed(options):
            command = option(command)
        for parameter in command.__click_params__[before:]:
            vars(parameter).setdefault(_GROUP, title)
        return command

    return decorate

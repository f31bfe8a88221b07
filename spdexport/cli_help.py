"""Commands whose ``--help`` has their options in groups, and examples at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

Decorator = Callable[[Any], Any]


class IncompleteCommand(click.UsageError):
    """Something that a command needs is not given; it names all of it."""

    def __init__(self, missing: Sequence[click.Parameter | None], examples: Sequence[str], ctx: click.Context) -> None:
        names = [p.opts[0] if isinstance(p, click.Option) else p.make_metavar(ctx) for p in missing if p is not None]
        super().__init__(f"The command needs {' and '.join(names)}.", ctx)
        self.examples = tuple(examples)


class Command(click.Command):
    """A command whose ``--help`` has its options in groups, with what each group is about above it.

    What has to be given and is not is told in one error, with the first example.
    """

    examples: tuple[str, ...] = ()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of the command line."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter as error:
            # Read once more without asking for anything, for click stops at the first that is missing.
            found = self.make_context(ctx.info_name, given, parent=ctx.parent, resilient_parsing=True).params
            missing = [p for p in self.params if p.required and not found.get(p.name or "")]
            raise IncompleteCommand(missing or [error.param], self.examples, ctx) from error

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
    epilog = f"\b\nExamples:\n{shown}" if examples else None
    made = click.command(None, Command, short_help=short_help, epilog=epilog)

    def decorate(function: Callable[..., Any]) -> Command:
        found = made(function)
        found.examples = examples
        return found

    return decorate


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

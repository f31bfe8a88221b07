"""What an option that does not exist may have been meant to be. Click's own guess compares the dashes too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEAR = 0.7
"""How like a name has to be to be guessed: a wrong guess is worse than none."""


def meant(option: str, context: click.Context, program: click.Group) -> str:
    """Return a sentence on what an unknown option was meant to be, with a space behind it; nothing where that is open.

    Args:
        option: As it was given, such as ``--mask``.
        context: Of the command that it was given to.
        program: All commands.
    """
    import difflib

    having = [name for name, command in program.commands.items() if option in _options(command)]
    if having:
        return f"It is an option of spdexport {', '.join(having)}. "
    own = {name.lstrip("-"): name for name in _options(context.command) if name.startswith("--")}
    if len(option) == 2:  # one dash before a word is read as one letter after another
        words = [f"-{word.partition('=')[0]}" for word in context.find_root().obj or () if word.startswith(option)]
        whole = [word for word in words if word in own.values()]
        return f"Options that are words have two dashes: {whole[0]}. " if whole else ""
    name = option.lstrip("-")
    plural = own.get(f"{name}s")
    longer = [own[x] for x in own if len(name) > 2 and x.startswith(name)]
    near = [own[x] for x in difflib.get_close_matches(name, own, n=1, cutoff=_NEAR)]
    guesses = [plural] if plural else list(dict.fromkeys((*near, *longer)))
    return f"Did you mean {' or '.join(guesses)}? " if guesses else ""


def _options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield from (*parameter.opts, *parameter.secondary_opts)

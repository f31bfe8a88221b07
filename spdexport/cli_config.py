"""The file of ``--config``: options under the words that the command line has for them.

It is read where it is named, and never because it lies in a folder: a factory that it names is code that runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from spdexport.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LARGEST = 1 << 20
"""Bytes of a configuration, which is written by hand."""

ASKED_EACH_TIME = ("trust", "allow-pickle", "limit", "debug", "config")
"""Words that a file does not give: permissions, which are the user's to give when the command is run."""

_FORM = 'Write it as TOML: factory = "model.py:Net" for all commands, and [convert] above what is for one of them.'


def read_config(path: Path, context: click.Context) -> dict[str, Any]:
    """Return what a configuration says about the options of a command, by their parameters' names.

    Args:
        path: The file.
        context: Of the command that runs, inside of that of the program.

    Raises:
        InputError: The file cannot be read, or has a word or value that no option takes.
    """
    import tomllib

    from spdexport.files.reading import reading
    from spdexport.files.sniff import read_text

    what = "The configuration cannot be read"
    text = read_text(path, error=InputError, what=what, hint=_FORM)
    if len(text) > LARGEST:
        raise InputError(f"{what}: it is longer than {LARGEST} characters.", where=str(path), hint=_FORM)
    with reading(path, error=InputError, what=what, hint=_FORM):
        content = tomllib.loads(text)
    assert isinstance(context.parent, click.Context), "a command runs inside of the program"
    program = context.parent.command
    assert isinstance(program, click.Group), "the program has commands"
    commands = program.commands
    common = {word: value for word, value in content.items() if not isinstance(value, dict)}
    known = {word for command in commands.values() for word in _words(command)}
    _check_words(common, known, str(path))
    for name, table in content.items():
        if isinstance(table, dict):
            if name not in commands:
                raise _unknown(name, commands, "command", str(path))
            _check_words(table, set(_words(commands[name])), f"{path}, [{name}]")
    words = _words(context.command)
    given = {**common, **content.get(context.command.name or "", {})}
    return dict(_value(words[word], word, value, str(path)) for word, value in given.items() if word in words)


def _words(command: click.Command) -> dict[str, click.Parameter]:
    """The words for the parameters of a command: options without dashes, and arguments by their names."""
    words: dict[str, click.Parameter] = {}
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            words |= {o.lstrip("-"): parameter for o in parameter.opts if o.startswith("--")}
        elif parameter.name is not None:
            words[parameter.name] = parameter
    return words


def _check_words(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for word in given:
        if word not in known:
            raise _unknown(word, known, "option", where)
        if word in ASKED_EACH_TIME:
            raise InputError(
                f"The configuration gives {word}, which only a command line can give.",
                where=where,
                hint=f"Leave it out, and give --{word} where it is meant.",
            )


def _unknown(word: str, known: Any, what: str, where: str) -> InputError:
    from spdexport.names import did_you_mean

    return InputError(
        f"The configuration has {word!r}, which is no {what}.", where=where, hint=did_you_mean(word, known)
    )


def _value(parameter: click.Parameter, word: str, value: Any, where: str) -> tuple[str, Any]:
    """The parameter's name, and the value as click takes it."""
    assert parameter.name is not None, "every parameter has a name"
    if isinstance(parameter, click.Option) and parameter.is_flag:
        if not isinstance(value, bool):
            raise _wrong(word, value, "true or false", where)
        return parameter.name, value
    several = parameter.multiple if isinstance(parameter, click.Option) else parameter.nargs != 1
    if isinstance(value, list) and not several:
        raise _wrong(word, value, "one value", where)
    found = list(_scalars(word, value, where))
    return parameter.name, found if several else found[0]


def _scalars(word: str, value: Any, where: str) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise _wrong(word, one, "a text or a number", where)
        yield str(one)


def _wrong(word: str, value: Any, expected: str, where: str) -> InputError:
    from spdexport.text import one_line

    shown = one_line(repr(value))
    return InputError(
        f"The configuration gives {word} as {shown if len(shown) < 60 else shown[:60] + '...'}.",
        where=where,
        hint=f"Give {expected}.",
    )

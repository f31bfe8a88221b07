"""The kinds of options of the command line: keywords of functions, options under an older name, shares."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Keyword(click.Option):
    """An option that is a keyword of a function of ``spdexport``, under the same name."""


def keyword(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """Return the decorator of an option that ``pop_given`` collects; the arguments are those of ``click.option``."""
    return click.option(*names, **{"cls": Keyword, **attributes})


def pop_given(parameters: dict[str, Any]) -> dict[str, Any]:
    """Take the values of all ``Keyword`` options out of the parameters of the command that runs.

    Returns:
        Those that the user really gave, on the command line or in a configuration, by their names.
    """
    context = click.get_current_context()
    said = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)
    names = [p.name for p in context.command.params if isinstance(p, Keyword) and p.name is not None]
    values = {name: parameters.pop(name) for name in names}
    return {name: value for name, value in values.items() if context.get_parameter_source(name) in said}


class Share(click.FloatRange):
    """A number of at least 0, or a percentage: ``0.01`` and ``1%`` are the same."""

    name = "share"

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor a percentage, such as 0.01 or 1%.", param, ctx)
        return super().convert(number, param, ctx)


class Renamed(click.Option):
    """An option whose long names other than the first are older ones, which work and are not shown."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return what ``--help`` says of it."""
        with self._without_older():
            return super().get_help_record(ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return its name in an error."""
        with self._without_older():
            return super().get_error_hint(ctx)

    @contextlib.contextmanager
    def _without_older(self) -> Iterator[None]:
        names = self.opts
        self.opts = names[:1]
        try:
            yield
        finally:
            self.opts = names


class RenamedKeyword(Renamed, Keyword):
    """The same, of a keyword."""

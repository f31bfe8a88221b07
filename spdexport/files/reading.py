"""The boundary around every parser: what it raises is an error about the file that it was given."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from spdexport.errors import InputError, SourceError, SpdExportError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def reading(
    where: str | Path,
    *,
    error: type[InputError] = SourceError,
    what: str = "The file is damaged",
    hint: str = "Copy or write it again.",
) -> Iterator[None]:
    """Turn whatever is raised inside of the block into an error about the file that is read.

    Only the call of a parser belongs into the block. Parsers of other packages raise whatever they trip over in a
    damaged file, so that no list of exceptions is complete; code of this package that fails behind the block is a fault
    of its own and stays one.

    Args:
        where: The file, and the place in it if that is known.
        error: The class to raise, since the caller knows whether it is a model, a mask or an input.
        what: What is said before the parser's own words.
        hint: What the user can do.

    Raises:
        InputError: Of class ``error``, with the parser's exception as its cause. Errors of this package pass unchanged.
    """
    try:
        yield
    except SpdExportError:
        raise
    except MemoryError as exc:
        raise error(f"{what}: it asks for more memory than there is.", where=str(where), hint=hint) from exc
    except Exception as exc:
        raise error(f"{what}: {first_line(exc)}", where=str(where), hint=hint) from exc

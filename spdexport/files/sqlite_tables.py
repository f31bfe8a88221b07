"""Tables of an SQLite file, read as untrusted data: nothing is written beside it, and no view or trigger of it runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from spdexport.files.reading import reading
from spdexport.files.sniff import read_head

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from spdexport.errors import InputError

_MAGIC = b"SQLite format 3\0"
_STEPS = 1000
"""Operations of SQLite's machine between two looks at how many there were."""

_MOST_STEPS = 200_000
"""Looks before it is stopped: 200 million operations, some seconds."""

_LONGEST = 1 << 16
"""Characters of a text, and bytes of a value: longer ones are cut, or refused."""

HINT = "Give the harvest.db that SPD's code wrote, or another SQLite file with a table of components."


def is_sqlite(path: Path, *, error: type[InputError]) -> bool:
    """Tell whether a file is one of SQLite.

    Raises:
        InputError: As ``read_head`` does.
    """
    return read_head(path, error=error).startswith(_MAGIC)


@contextmanager
def tables_of(path: Path, *, error: type[InputError]) -> Iterator[Tables]:
    """Open an SQLite file for reading, with bounds to what it may cost.

    Raises:
        InputError: The file cannot be read, is no SQLite file, or was not closed properly.
    """
    if not is_sqlite(path, error=error):
        raise error("The file is no SQLite database.", where=str(path), hint=HINT)
    log = path.with_name(f"{path.name}-wal")
    if log.is_file() and log.stat().st_size:
        raise error(
            f"The database was not closed: {log.name} holds changes that are not in it yet.",
            where=str(path),
            hint="Close what writes it, or run `sqlite3 FILE 'pragma wal_checkpoint(truncate)'`.",
        )
    # Immutable: SQLite makes neither locks nor files beside it.
    place = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
    with reading(path, error=error, what="The database cannot be read", hint=HINT):
        connection = sqlite3.connect(place, uri=True)
    with closing(connection):
        with reading(path, error=error, what="The database cannot be read", hint=HINT):
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1 << 28)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            for pragma in ("query_only=on", "trusted_schema=off", "cell_size_check=on", "mmap_size=0"):
                connection.execute(f"pragma {pragma}")
        yield Tables(connection, path, error)


class Tables:
    """The tables of an open file.

    Args:
        connection: The file.
        path: Its name, for messages.
        error: The class to raise.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, error: type[InputError]) -> None:
        self._connection, self._path, self._error = connection, path, error
        self._steps = 0
        connection.set_progress_handler(self._count, _STEPS)

    def _count(self) -> int:
        self._steps += 1
        return int(self._steps > _MOST_STEPS)

    def columns(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of each plain table by its name; views and virtual tables are none.

        Raises:
            InputError: The file is damaged.
        """
        found = {}
        with reading(self._path, error=self._error, what="The database is damaged", hint=HINT):
            query = "select name, sql from sqlite_master where type = 'table'"
            for name, sql in self._connection.execute(query).fetchmany(1000):
                if isinstance(name, str) and isinstance(sql, str) and sql.lstrip()[:12].lower() == "create table":
                    listed = self._connection.execute(f"pragma table_info({_quoted(name)})").fetchmany(1000)
                    found[name] = [str(row[1]) for row in listed]
        return found

    def rows(self, table: str, columns: Sequence[str], *, most: int) -> list[tuple[object, ...]]:
        """Return some columns of all rows of a table; texts beyond 65,536 characters are cut.

        Args:
            table: One that ``columns`` has.
            columns: Of it.
            most: The most rows that there may be.

        Raises:
            InputError: The file is damaged, takes too long, or has more rows.
        """
        wanted = ", ".join(
            f"case typeof({_quoted(c)}) when 'text' then substr({_quoted(c)}, 1, {_LONGEST}) "
            f"when 'blob' then substr({_quoted(c)}, 1, {_LONGEST}) else {_quoted(c)} end"
            for c in columns
        )
        with reading(self._path, error=self._error, what="The database is damaged", hint=HINT):
            found = self._connection.execute(f"select {wanted} from {_quoted(table)}").fetchmany(most + 1)
        if len(found) > most:
            raise self._error(
                f"The table {table} has more than {most} rows, and there are no more components.",
                where=str(self._path),
                hint="Give the harvest of this run.",
            )
        return found


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

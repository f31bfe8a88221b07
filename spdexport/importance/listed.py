"""Masks from files about components, and from no data: a harvest of SPD's, a list of names, or a table of labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.errors import MaskError, UsageError
from spdexport.files.reading import reading
from spdexport.files.sniff import read_text
from spdexport.files.sqlite_tables import is_sqlite, tables_of
from spdexport.importance.statistics import Importances, Measure
from spdexport.names import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from spdexport.conv import FloatArray

NAMES = '["layer:3", ...], {"name": ["layer:3", ...]}, or {"layer": [3, ...]}'
KEYS = ("component_key", "component", "key", "name")
INDICES = ("component_idx", "index", "idx")
LABELS = ("label", "interpretation", "description")

_DIGITS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What there is to be masked.

    Attributes:
        sizes: C by the run's own layer names.
        dashed: Whether these have '-' where the model's have '.'.
    """

    sizes: Mapping[str, int]
    dashed: bool

    @property
    def total(self) -> int:
        """All components."""
        return sum(self.sizes.values())

    def size(self, layer: str, where: str) -> int:
        """Return C of a layer that a file names, with '.' or with '-'.

        Raises:
            MaskError: The run has no components for it.
        """
        for name in (layer, layer.replace(".", "-") if self.dashed else layer):
            if name in self.sizes:
                return self.sizes[name]
        raise MaskError(
            f"The file has components of {layer}, and the run has none.",
            where=where,
            hint=did_you_mean(layer, self.sizes),
        )

    def split(self, key: str, where: str) -> tuple[str, int]:
        """Return layer and index of a component's key, such as ``layer:3``.

        Raises:
            MaskError: It is no key, or there is no such component.
        """
        layer, index = split_key(key, where)
        self.check(layer, index, where)
        return layer, index

    def check(self, layer: str, index: int, where: str) -> None:
        """Refuse a component that there is not.

        Raises:
            MaskError: Says which there are.
        """
        size = self.size(layer, where)
        if not 0 <= index < size:
            raise MaskError(
                f"The file has the component {layer}:{index}, and {layer} has 0 to {size - 1}.",
                where=where,
                hint="Give a file that was made for this run.",
            )


def split_key(key: str, where: str) -> tuple[str, int]:
    """Return layer and index of a component's key, such as ``layer:3``, whether there is one or not.

    Raises:
        MaskError: It is no key.
    """
    layer, _, index = key.rpartition(":")
    if not layer or not (index.isascii() and index.isdecimal() and len(index) <= _DIGITS):
        raise MaskError(f"{key[:80]!r} names no component.", where=where, hint="Components are called layer:3.")
    return layer, int(index)


def read_harvest(path: Path, run: Run) -> dict[str, Importances]:
    """Read what a harvest says of each component, by layer.

    Args:
        path: An SQLite file with a table ``components``: component_key, and mean_ci or mean_activations (JSON with
            causal_importance), firing_density, or both. Components that are not in it never fired.
        run: The run.

    Raises:
        MaskError: The file cannot be read, has no such table, or is of another run.
    """
    with tables_of(path, error=MaskError) as tables:
        known = tables.columns()
        columns = known.get("components", ())
        told = [c for c in ("mean_ci", "mean_activations", "firing_density") if c in columns]
        if "component_key" not in columns or not told:
            raise MaskError(
                "The database has no table of components with their importance: it has "
                f"{', '.join(sorted(known)[:5]) or 'no tables'}.",
                where=str(path),
                hint="Give the harvest.db that SPD's code wrote.",
            )
        rows = tables.rows("components", ["component_key", *told], most=run.total)
    found: dict[str, dict[str, FloatArray]] = {}
    for key, *values in rows:
        if not isinstance(key, str):
            raise MaskError("A component has no name.", where=str(path), hint="Give the harvest that SPD's code wrote.")
        layer, index = run.split(key, str(path))
        measured = found.setdefault(layer, {})
        for column, value in zip(told, values, strict=True):
            measure = "frequency" if column == "firing_density" else "mean"
            row = measured.setdefault(measure, np.zeros(run.size(layer, str(path))))
            row[index] = _number(key, column, value, path)
    return {
        layer: Importances(peak=None, mean=measured.get("mean"), frequency=measured.get("frequency"))
        for layer, measured in found.items()
    }


def _number(key: str, column: str, value: object, path: Path) -> float:
    where = f"{path}, {key}"
    if column == "mean_activations":
        with reading(where, error=MaskError, what="Its mean_activations are no JSON", hint="Harvest the run again."):
            content = json.loads(value if isinstance(value, str | bytes) else "null")
        value = content.get("causal_importance") if isinstance(content, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    raise MaskError(f"The {column} of {key} is no finite number.", where=where, hint="Harvest the run again.")


def harvest_measure(by: str | None, found: Mapping[str, Importances]) -> Measure:
    """Return what components of a harvest are judged by: how often they fired, where nothing is said.

    Raises:
        UsageError: The harvest does not have it.
    """
    has = [m for m in (Measure.FREQUENCY, Measure.MEAN) if all(x.measured(m) is not None for x in found.values())]
    wanted = by or (has[0].value if has else Measure.MEAN.value)
    if wanted not in [m.value for m in has]:
        raise UsageError(
            f"The harvest does not tell the {wanted} of importances.",
            where=f"--by {wanted}",
            hint=f"Give --by {' or --by '.join(m.value for m in has) or 'nothing: it is empty'}.",
        )
    return Measure(wanted)


def read_names(path: Path, run: Run) -> dict[str, set[int]]:
    """Read the components that a JSON file names, by layer.

    Raises:
        MaskError: The file is of no known form, or names a component that there is not.
    """
    content = _json(path, f"Write {NAMES}.")
    found: dict[str, set[int]] = {}
    for layer, index in _named(content, run, str(path)):
        found.setdefault(layer, set()).add(index)
    if not found:
        raise MaskError("The file names no components.", where=str(path), hint=f"Write {NAMES}.")
    return found


def _named(content: object, run: Run, where: str, layer: str | None = None) -> Iterator[tuple[str, int]]:
    """Components in lists, and in objects from names to lists; numbers are those of the layer that a list is of."""
    if isinstance(content, Mapping) and layer is None:
        for name, value in content.items():
            yield from _listed(value, run, f"{where}, {name}", str(name))
    else:
        yield from _listed(content, run, where, layer)


def _listed(content: object, run: Run, where: str, layer: str | None) -> Iterator[tuple[str, int]]:
    if not isinstance(content, list):
        raise MaskError("The file holds no lists of components.", where=where, hint=f"Write {NAMES}.")
    for item in content:
        if isinstance(item, str):
            yield run.split(item, where)
        elif isinstance(item, int) and not isinstance(item, bool) and layer is not None:
            run.check(layer, item, where)
            yield layer, item
        elif isinstance(item, list) and all(isinstance(name, str) for name in item):
            yield from (run.split(name, where) for name in item)
        else:
            raise MaskError("The file names what is no component.", where=where, hint=f"Write {NAMES}.")


def read_labels(path: Path, run: Run, patterns: Sequence[str]) -> dict[str, set[int]]:
    """Read the components whose label matches a pattern, by layer; layers whose labels all do not are there, empty.

    Args:
        path: A table with a header (CSV or TSV), JSON (an object from components to labels, or a list of objects), or
            an SQLite file with a table of them: ``component_key`` and ``label``.
        run: The run.
        patterns: As of fnmatch, whatever the case of letters.

    Raises:
        MaskError: The file cannot be read, or has no such columns.
    """
    found: dict[str, set[int]] = {}
    wanted = [pattern.lower() for pattern in patterns]
    for key, label in labels_in(path, most=run.total):
        layer, index = run.split(key, str(path))
        kept = found.setdefault(layer, set())
        if any(fnmatchcase(label.lower(), pattern) for pattern in wanted):
            kept.add(index)
    if not any(found.values()):
        raise MaskError(
            f"No label matches {' or '.join(map(repr, patterns))}.",
            where=str(path),
            hint="Patterns are of whole labels: write '*plural*' for a word in them.",
        )
    return found


def labels_in(path: Path, *, most: int) -> Iterator[tuple[str, str]]:
    """Yield the keys of components, each with its label.

    Args:
        path: As for ``read_labels``.
        most: The most rows that a database may have.

    Raises:
        MaskError: The file cannot be read, or has no such columns.
    """
    if is_sqlite(path, error=MaskError):
        with tables_of(path, error=MaskError) as tables:
            for table, columns in tables.columns().items():
                label = next((name for name in LABELS if name in columns), None)
                if "component_key" in columns and label is not None:
                    for key, value in tables.rows(table, ["component_key", label], most=most):
                        yield str(key), str(value)
                    return
        raise _no_labels(path)
    hint = "Write a table with the columns component_key and label."
    text = read_text(path, error=MaskError, what="The labels cannot be read", hint=hint)
    rows: list[Mapping[str, Any]]
    if text.lstrip()[:1] in ("{", "["):
        content = _json(path, hint)
        if isinstance(content, dict):
            yield from ((str(key), str(value)) for key, value in content.items())
            return
        rows = [row for row in content if isinstance(row, dict)] if isinstance(content, list) else []
    else:
        first = text.partition("\n")[0]
        with reading(path, error=MaskError, what="The labels cannot be read", hint=hint):
            rows = list(csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in first else ","))
    for row in rows:
        yield _row(row, path)


def _row(row: Mapping[str, Any], path: Path) -> tuple[str, str]:
    label = next((row[name] for name in LABELS if row.get(name) is not None), None)
    key = next((row[name] for name in KEYS if row.get(name) is not None), None)
    index = next((row[name] for name in INDICES if row.get(name) is not None), None)
    if key is None and row.get("layer") is not None and index is not None:
        key = f"{row['layer']}:{index}"
    if key is None or label is None:
        raise _no_labels(path)
    return str(key), str(label)


def _no_labels(path: Path) -> MaskError:
    return MaskError(
        "The file has no table of components with their labels.",
        where=str(path),
        hint=f"Give columns called {KEYS[0]} (or layer and {INDICES[0]}) and {LABELS[0]}.",
    )


def _json(path: Path, hint: str) -> object:
    text = read_text(path, error=MaskError, what="The file cannot be read", hint=hint)
    with reading(path, error=MaskError, what="The file cannot be read", hint=hint):
        content: object = json.loads(text)
    return content

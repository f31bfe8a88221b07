"""Which components an ablation is about: single ones, or named sets from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdexport.errors import InputError
from spdexport.files.reading import reading
from spdexport.files.sniff import read_text
from spdexport.names import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

FORMS = '{"name": ["layer:0", "layer:7"], ...}, or a list of such lists'

_DIGITS = 18
"""More than any index has; Python refuses to read numbers of thousands of digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentsOf:
    """Some components under a name.

    Attributes:
        name: ``layer:index`` for a single one.
        members: Indices by layer, sorted.
    """

    name: str
    members: Mapping[str, tuple[int, ...]]


def each_of(components: Mapping[str, int]) -> tuple[ComponentsOf, ...]:
    """Return every component by itself.

    Args:
        components: C by layer.
    """
    return tuple(
        ComponentsOf(name=f"{layer}:{index}", members={layer: (index,)})
        for layer, number in components.items()
        for index in range(number)
    )


def read_sets(path: Path, components: Mapping[str, int]) -> tuple[ComponentsOf, ...]:
    """Sets of components from a JSON file.

    Taken are an object from names to lists of ``layer:index``, a list of such lists (called by their number), and
    either of them under the one key ``clusters`` or ``sets``, as SPD's cluster files have them. Layer names may have
    '-' where the model's have '.'.

    Args:
        path: The file.
        components: C by layer.

    Raises:
        InputError: The file is of no such form, names a layer that has no mask, or a component that there is not.
    """
    what, hint = "The sets cannot be read", f"Write {FORMS}."
    text = read_text(path, error=InputError, what=what, hint=hint)
    with reading(path, error=InputError, what=what, hint=hint):
        content = json.loads(text)
    if isinstance(content, dict) and len(content) == 1:
        (key,) = content
        if key in ("clusters", "sets") and not _is_set(content[key]):
            content = content[key]
    found = tuple(_sets(content, components, path))
    if not found:
        raise InputError("The file holds no sets.", where=str(path), hint=f"Write {FORMS}.")
    return found


def _is_set(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_index(text: str, number: int) -> bool:
    """Whether a text is one of the indices 0 to ``number - 1``."""
    return text.isdecimal() and len(text) <= _DIGITS and int(text) < number


def _sets(content: object, components: Mapping[str, int], path: Path) -> Iterator[ComponentsOf]:
    pairs: Sequence[tuple[str, object]]
    if isinstance(content, dict):
        pairs = [(str(name), value) for name, value in content.items()]
    elif isinstance(content, list):
        pairs = [(str(number), value) for number, value in enumerate(content)]
    else:
        raise InputError("The file holds no sets by name.", where=str(path), hint=f"Write {FORMS}.")
    dashed = {layer.replace(".", "-"): layer for layer in components}
    for name, value in pairs:
        where = f"{path}, {name}"
        if not isinstance(value, list) or not _is_set(value) or not value:
            raise InputError(f"The set {name!r} is no list of components.", where=where, hint=f"Write {FORMS}.")
        members: dict[str, set[int]] = {}
        for text in value:
            layer, _, index = text.rpartition(":")
            layer = layer if layer in components else dashed.get(layer, layer)
            if layer not in components:
                raise InputError(
                    f"The set {name!r} names {text!r}, and the file has no run-time mask of that layer.",
                    where=where,
                    hint=did_you_mean(layer, components),
                )
            if not _is_index(index, components[layer]):
                raise InputError(
                    f"The set {name!r} names {text!r}, and {layer} has the components 0 to {components[layer] - 1}.",
                    where=where,
                    hint="Use sets that were made for these components.",
                )
            members.setdefault(layer, set()).add(int(index))
        yield ComponentsOf(name=name, members={layer: tuple(sorted(found)) for layer, found in members.items()})

"""The configuration of an SPD run: YAML files under several names, with settings at the top or nested in others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from spdexport.errors import ComponentsError
from spdexport.files.reading import reading
from spdexport.files.sniff import read_text
from spdexport.sources.run_files import CONFIGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_HINT = "Copy it again, or remove it: only the causal-importance functions need it."
_SIZE = 1 << 18
"""Characters of a configuration, and values with those that aliases repeat; SPD's have a few thousand."""

_DEEPEST = 8
"""Mappings inside of mappings that are looked into; SPD nests two or three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What the configuration files of a run say.

    Attributes:
        files: The content of each by its name; empty where there is none.
    """

    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """The names of the files, for messages; what would be one where there is none."""
        return " and ".join(self.files) or f"no {', '.join(CONFIGS[:-1])} or {CONFIGS[-1]}"

    def text(self, *names: str) -> str | None:
        """Return the text that a setting has, under the first of several names that is anywhere; None for none.

        Raises:
            ValueError: The setting is there more than once, with different values.
        """
        for name in names:
            values = dict.fromkeys(value for value in self._all(name) if isinstance(value, str))
            if len(values) > 1:
                raise ValueError(f"{self.told} has {name} as {' and as '.join(map(repr, values))}")
            if values:
                return next(iter(values))
        return None

    def number(self, name: str) -> float | None:
        """Return the number that a setting has; None where it is not there, or is there with different values."""
        values = {v for v in self._all(name) if isinstance(v, int | float) and not isinstance(v, bool)}
        return values.pop() if len(values) == 1 else None

    def section(self, name: str) -> Mapping[str, Any]:
        """Return the first mapping of settings of that name; an empty one where there is none."""
        return next((value for value in self._all(name) if isinstance(value, Mapping)), {})

    def list(self, name: str) -> Sequence[Any]:
        """Return the first list of that name; an empty one where there is none."""
        return next((value for value in self._all(name) if isinstance(value, list)), [])

    def _all(self, name: str) -> Iterator[Any]:
        for content in self.files.values():
            yield from _search(content, name, 0)


def read_config(*folders: Path) -> RunConfig:
    """Read the configuration files of the run in the first of some folders that has any; without one, it says nothing.

    Raises:
        ComponentsError: One is there and no YAML mapping.
    """
    for folder in folders:
        found = {name: _read(folder / name) for name in CONFIGS if (folder / name).is_file()}
        if found:
            return RunConfig(files=found)
    return RunConfig()


def _search(content: object, name: str, depth: int) -> Iterator[Any]:
    """Find a setting: at the top first, then in each mapping inside, as far down as SPD nests and some more."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    if name in content:
        yield content[name]
    for key, inner in content.items():
        if key != name:
            yield from _search(inner, name, depth + 1)


def _read(path: Path) -> Mapping[str, Any]:
    what = "The configuration of the run is no YAML"
    text = read_text(path, error=ComponentsError, what=what, hint=_HINT)
    with reading(path, error=ComponentsError, what=what, hint=_HINT):
        _check_yaml(text)
        content: object = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise ComponentsError("The configuration of the run holds no names and values.", where=str(path), hint=_HINT)
    return content


def _check_yaml(text: str) -> None:
    """Refuse a text that is far more than a configuration: in itself, or by what its aliases repeat.

    Raises:
        ValueError: It is.
        yaml.YAMLError: It is no YAML.
    """
    if len(text) > _SIZE:
        raise ValueError(f"it has {len(text)} characters, and no configuration has {_SIZE}")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None and _expanded(root, {}) > _SIZE:
        raise ValueError("its aliases repeat too much")


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes there would be if each alias were written out."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _SIZE  # what a node is worth that holds itself
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]

"""Finding the state dict in what a training script saved: one mapping among optimizers, counters and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from spdexport.errors import SourceError, UsageError
from spdexport.names import did_you_mean, some

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DEEPEST = 6
"""Mappings inside of mappings that are looked into."""

_NOT_ALONE = "Save model.state_dict() alone, or under the key 'state_dict'."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """A state dict in a checkpoint.

    Attributes:
        key: Where it is, dotted; empty for the content itself.
        state: Tensors by name, as they are in the file.
        module: The pickled module that it is of; None for a state dict alone.
    """

    key: str
    state: Mapping[str, torch.Tensor]
    module: torch.nn.Module | None = None

    @property
    def note(self) -> tuple[str, ...]:
        """What the user should know of where it was; nothing for the content itself."""
        if not self.key:
            return ()
        return (f"{'the state dict' if self.module is None else 'the module'} under {self.key!r} was taken",)


def find_states(content: object, where: str, key: str | None = None) -> tuple[Found, ...]:
    """Return the state dicts that may be the model's, at least one; several where the file does not tell which.

    A mapping of tensors counts wherever it is, under whatever name, beside whatever else. Those of optimizers do not,
    nor do those without a name of a parameter as long as others have one.

    Args:
        content: What the file holds.
        where: The file, for messages.
        key: The one that the user chose, dotted; None for no choice.

    Raises:
        SourceError: There is no state dict in it, or one with entries that are not tensors.
        UsageError: There is none under the key.
    """
    every = list(_search(content, (), set()))
    if key is not None:
        return (_chosen(every, key, where),)
    others = [name for name, value in _own(content).items() if not isinstance(value, torch.Tensor)]
    if not every or (others and _has_dots(_own(content))):
        raise _without(content, others, where)
    return tuple([found for found in every if _is_of_a_model(found.state)] or every)


def several(candidates: Sequence[Found], where: str, why: str) -> SourceError:
    """Return the error of a checkpoint that does not tell which of its state dicts is meant."""
    names = [found.key for found in candidates]
    return SourceError(
        f"The file holds {len(names)} state dicts, {why}: {some(names)}.",
        where=where,
        hint=f"Choose one with --state-key, such as --state-key {names[0]}.",
    )


def _search(value: object, path: tuple[str, ...], seen: set[int]) -> Iterable[Found]:
    """Find the mappings of tensors in a value, each once however often it is referred to, the outer ones first."""
    if isinstance(value, torch.nn.Module):
        state = {name: x for name, x in value.state_dict().items() if isinstance(x, torch.Tensor)}
        yield Found(key=".".join(path), state=state, module=value)
    if not isinstance(value, Mapping) or id(value) in seen or len(path) > _DEEPEST or "param_groups" in value:
        return
    seen.add(id(value))
    tensors = {str(name): x for name, x in value.items() if isinstance(x, torch.Tensor)}
    if tensors and all(isinstance(x, torch.Tensor) or _is_extra(str(name), x) for name, x in value.items()):
        yield Found(key=".".join(path), state=tensors)
        return
    for name, inner in value.items():
        yield from _search(inner, (*path, str(name)), seen)


def _chosen(every: Sequence[Found], key: str, where: str) -> Found:
    for found in every:
        if found.key == key:
            return found
    names = [found.key for found in every if found.key]
    if not names:
        raise UsageError(
            "The file holds no state dict under a key to choose by.",
            where=f"{where}, --state-key {key}",
            hint="Leave --state-key out.",
        )
    raise UsageError(
        f"The file holds no state dict under {key!r}.",
        where=f"{where}, --state-key {key}",
        hint=did_you_mean(key, names),
    )


def _without(content: object, others: Sequence[str], where: str) -> SourceError:
    own = _own(content)
    if any(isinstance(value, torch.Tensor) for value in own.values()):
        return SourceError(
            f"The state dict has entries that are not tensors: {some(others)}.", where=where, hint=_NOT_ALONE
        )
    kind = type(content).__name__
    held = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if isinstance(content, Mapping):
        held = f"a dict of {some([str(name) for name in content])}"
    return SourceError(
        f"The file holds no state dict, but {held}.",
        where=where,
        hint="Save model.state_dict(), alone or under the key 'state_dict'.",
    )


def _own(content: object) -> dict[str, object]:
    """Return the entries of a mapping but for those of modules with an extra state, which nothing here can use."""
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if not _is_extra(str(name), value)}


def _is_extra(name: str, value: object) -> bool:
    return name.endswith("_extra_state") or value is None


def _has_dots(entries: Mapping[str, object]) -> bool:
    """Return whether there is the name of a parameter inside of a layer, which no counter or metric has."""
    return any("." in name for name, value in entries.items() if isinstance(value, torch.Tensor))


def _is_of_a_model(state: Mapping[str, torch.Tensor]) -> bool:
    return _has_dots(state) or any(name in ("weight", "bias") for name in state)

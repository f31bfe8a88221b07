"""From what people save to a state dict that fits the module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch

from spdexport.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable

_Module = TypeVar("_Module", bound=torch.nn.Module)

# Keys under which training scripts put the state dict, the more telling first (Lightning writes `state_dict`).
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "ema_state_dict", "params")
# What DataParallel and torch.compile put into names.
_PREFIXES = ("module", "_orig_mod")
_SHOWN = 5


def unwrap(obj: object, where: str) -> dict[str, torch.Tensor]:
    """The state dict inside of what a checkpoint holds.

    Sees through dicts that keep it under ``state_dict``, ``model_state_dict``, ``model`` and the like, beside
    optimizer states and counters. Names are left as they are; ``fit`` handles their prefixes.

    Args:
        obj: What the file holds.
        where: The file, for messages.

    Raises:
        SourceError: There is no state dict in it, or one with entries that are not tensors.
    """
    if isinstance(obj, torch.nn.Module):
        return dict(obj.state_dict())
    for _ in range(4):  # wrappers in wrappers
        if not isinstance(obj, Mapping) or any(isinstance(value, torch.Tensor) for value in obj.values()):
            break
        inner = next((obj[key] for key in _WRAPPERS if isinstance(obj.get(key), Mapping)), None)
        if inner is None:
            break
        obj = inner
    if not isinstance(obj, Mapping) or not any(isinstance(value, torch.Tensor) for value in obj.values()):
        held = f"a dict of {_names(map(str, obj))}" if isinstance(obj, Mapping) else f"a {type(obj).__name__}"
        raise SourceError(
            f"The file holds no state dict, but {held}.",
            where=where,
            hint="Save model.state_dict(), alone or under the key 'state_dict'.",
        )
    # Modules with get_extra_state have entries that are not tensors; nothing here can use them.
    other = [
        str(key) for key, value in obj.items() if not isinstance(value, torch.Tensor) and not _is_extra(str(key), value)
    ]
    if other:
        raise SourceError(
            f"The state dict has entries that are not tensors: {_names(other)}.",
            where=where,
            hint="Save model.state_dict() alone, or under the key 'state_dict'.",
        )
    return {str(key): value for key, value in obj.items() if isinstance(value, torch.Tensor)}


def fit(module: _Module, state: Mapping[str, torch.Tensor], *, where: str) -> _Module:
    """Load a state dict into a module, in place, and return the module.

    Where names differ only by wrappers, the wrappers are removed: ``_orig_mod.`` anywhere in a name, ``module.`` at its
    beginning, or the one outer name that all keys share (Lightning's ``model.``). A name that the module has itself
    is never changed, so that a child called ``module`` is safe. The module may be wrapped as well.

    Args:
        module: The module; its parameters keep their own dtype.
        state: Tensors by name.
        where: The file, for messages.

    Raises:
        SourceError: Names are missing or left over, or shapes differ; the module is unchanged.
    """
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    state = _renamed(state, own)
    missing = [name for name in own if name not in state and not _is_counter(name)]
    unexpected = [name for name in state if name not in own]
    misshapen = [
        f"{name} (file {_shape(state[name])}, module {_shape(own[name])})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or unexpected or misshapen:
        parts = [
            f"{len(names)} {label}: {_names(names)}"
            for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
            if names
        ]
        raise SourceError(
            f"The state dict does not fit the module; {'; '.join(parts)}.",
            where=where,
            hint="Check that the factory makes the model that was saved, with the same sizes.",
        )
    module.load_state_dict(dict(state), strict=False)
    return module


def _renamed(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict under the module's names, as far as removing wrappers from either gives them.

    A way of removing wrappers is applied to all names at once, and the first that makes the most names agree is taken:
    leaving names alone comes first, so that a child really called ``module`` keeps its name.
    """
    best: dict[str, str] = {}
    for ours in _variants(own, any_head=False):
        target = {bare: name for name, bare in ours.items()}
        for theirs in _variants(state, any_head=True):
            renaming = {name: target[bare] for name, bare in theirs.items() if bare in target}
            if len(renaming) > len(best):
                best = renaming
    return {best.get(name, name): value for name, value in state.items()}


def _variants(names: Iterable[str], *, any_head: bool) -> list[dict[str, str]]:
    """Each way of removing wrappers, as name to shorter name; ways that make two names equal are left out."""
    names = list(names)
    ways = [{name: name for name in names}]
    compiled = {name: _without(name, ("_orig_mod",)) for name in names}
    ways.append(compiled)
    bare = compiled
    for _ in range(3):  # wrappers around wrappers
        heads = {short.partition(".")[0] for short in bare.values()}
        if len(heads) != 1 or not (any_head or heads <= {"module"}) or not all("." in x for x in bare.values()):
            break
        bare = {name: short.partition(".")[2] for name, short in bare.items()}
        ways.append(bare)
    # DataParallel around an inner layer: `backbone.module.conv.weight`.
    ways.append({name: _without(short, _PREFIXES) for name, short in compiled.items()})
    ways.append({name: _without(short, _PREFIXES) for name, short in bare.items()})
    return [way for way in ways if len(set(way.values())) == len(names)]


def _without(name: str, parts: tuple[str, ...]) -> str:
    return ".".join(part for part in name.split(".") if part not in parts)


def _is_extra(name: str, value: object) -> bool:
    return name.endswith("_extra_state") or value is None


def _is_counter(name: str) -> bool:
    # Old checkpoints of batch norm lack it, and inference does not read it.
    return name.rpartition(".")[2] == "num_batches_tracked"


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more

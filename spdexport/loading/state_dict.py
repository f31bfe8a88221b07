"""Loading a state dict into a module, under whatever wrappers its names were saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from spdexport.errors import SourceError
from spdexport.names import some

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_Module = TypeVar("_Module", bound=torch.nn.Module)

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put into names, wherever in them."""

_PREFIXES = ("module", *_WRAPPERS)
"""DataParallel's too, which a model may have as a name of its own."""

_AVERAGED = "n_averaged"
"""The counter that torch.optim.swa_utils.AveragedModel has beside the module."""


def fit(module: _Module, state: Mapping[str, torch.Tensor], *, where: str) -> _Module:
    """Load a state dict into a module, in place, and return the module.

    Where names differ only by wrappers, the wrappers are removed: ``_orig_mod.`` and the like anywhere in a name,
    ``module.`` at its beginning, or the one outer name that all keys share (Lightning's ``model.``). A name that the
    module has itself is never changed, so that a child called ``module`` is safe. The module may be wrapped as well.

    Args:
        module: The module; its parameters keep their own dtype.
        state: Tensors by name.
        where: The file, for messages.

    Raises:
        SourceError: Names are missing or left over, or shapes differ; the module is unchanged.
    """
    own = _tensors_of(module)
    renamed = _renamed(state, own)
    misfits = _misfits(renamed, own)
    if misfits:
        raise SourceError(
            f"The state dict does not fit the module; {'; '.join(misfits)}.",
            where=where,
            hint="Check that the factory makes the model that was saved, with the same sizes.",
        )
    module.load_state_dict(dict(renamed), strict=False)
    return module


def fits(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether ``fit`` would load the state dict."""
    own = _tensors_of(module)
    return not _misfits(_renamed(state, own), own)


def fitting_part(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor]
) -> tuple[str, dict[str, torch.Tensor]] | None:
    """Return the one outer name whose part of a state dict fits the module, with that part; None for none, or several.

    Lightning saves the losses and metrics of a training module beside its model, and both networks of a GAN.
    """
    heads: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        heads.setdefault(head, {})[rest] = value
    fitting = [(head, part) for head, part in heads.items() if "" not in part and fits(module, part)]
    return fitting[0] if len(heads) > 1 and len(fitting) == 1 else None


def _tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def _misfits(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """Return what keeps a state dict from fitting, in clauses; empty where it fits."""
    missing = [name for name in own if name not in state and not _is_counter(name)]
    unexpected = [name for name in state if name not in own]
    misshapen = [
        f"{name} (file {_shape(state[name])}, module {_shape(own[name])})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    listed = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    return [f"{len(names)} {label}: {some(names)}" for label, names in listed if names]


def _renamed(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict under the module's names, as far as removing wrappers from either gives them.

    A way of removing wrappers is applied to all names at once, and the first that makes the most names agree is taken:
    leaving names alone comes first, so that a child really called ``module`` keeps its name.
    """
    others = {name: value for name, value in state.items() if name != _AVERAGED}
    if _AVERAGED not in own and all(name.startswith("module.") for name in others):
        state = others
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
    compiled = {name: _without(name, _WRAPPERS) for name in names}
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


def _is_counter(name: str) -> bool:
    # Old checkpoints of batch norm lack it, and inference does not read it.
    return name.rpartition(".")[2] == "num_batches_tracked"


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"

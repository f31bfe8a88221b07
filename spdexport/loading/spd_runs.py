"""The module of an SPD run: the factory's, with the dense weights of the run, and the identities that it inserted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from spdexport.errors import ComponentsError
from spdexport.loading.state_dict import fit
from spdexport.names import did_you_mean, some
from spdexport.sources.spd_layouts import INSERTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.sources.components import ComponentSet


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunModule:
    """A module with the weights of a run.

    Attributes:
        module: The module.
        notes: What the user should know of it.
    """

    module: torch.nn.Module
    notes: tuple[str, ...] = ()


def module_of_run(module: torch.nn.Module, components: ComponentSet, *, where: str) -> RunModule:
    """Load the dense weights of a run into a module, in place, and insert the identities that the run decomposed.

    Args:
        module: The factory's.
        components: The run.
        where: The run's file, for messages.

    Raises:
        SourceError: The weights do not fit the module.
        ComponentsError: An identity was inserted in front of a layer that the module has not, or that is not linear.
    """
    notes: list[str] = []
    if components.target:
        module = fit(module, _oriented(module, components), where=where)
    else:
        notes.append("the run holds what was learned alone: the dense weights are the factory's own")
    layers = [_layer(name, module, components, where) for name in components.identity]
    for layer in layers:
        _insert(module.get_submodule(layer), layer, where)
    if layers:
        notes.append(f"identities that the run decomposed are linear layers in front of {some(layers)}")
    return RunModule(module=module, notes=tuple(notes))


def _oriented(module: torch.nn.Module, components: ComponentSet) -> Mapping[str, torch.Tensor]:
    """The dense weights; those of decomposed layers as the module stores them, which may be transposed."""
    own = module.state_dict()
    names = {f"{layer}.weight" for layer in components.components} if not components.dashed else set()

    def oriented(name: str, tensor: torch.Tensor) -> torch.Tensor:
        wanted = own.get(name)
        turned = name in names and wanted is not None and tensor.ndim == 2 and wanted.shape == tensor.T.shape
        return tensor.T if turned and wanted is not None and wanted.shape != tensor.shape else tensor

    return {name: oriented(name, tensor) for name, tensor in components.target.items()}


def _layer(name: str, module: torch.nn.Module, components: ComponentSet, where: str) -> str:
    """The module's own name of a layer that a run names in its way."""
    known: list[str] = [layer for layer, _ in module.named_modules() if layer]
    found = [layer for layer in known if (layer.replace(".", "-") if components.dashed else layer) == name]
    if len(found) != 1:
        what = f"may mean {' or '.join(found)}" if found else "is no layer of the model"
        raise ComponentsError(
            f"The run inserted an identity in front of {name}, which {what}.",
            where=where,
            hint="Give a factory of the model that the run decomposed. " + ("" if found else did_you_mean(name, known)),
        )
    return found[0]


def _insert(layer: torch.nn.Module, name: str, where: str) -> None:
    """Let a linear layer run an identity first, a linear layer of its own."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or isinstance(layer, torch.nn.Embedding):
        raise ComponentsError(
            f"The run inserted an identity in front of {name}, a {type(layer).__name__}, which is not linear.",
            where=where,
            hint="Give a factory of the model that the run decomposed.",
        )
    # Hugging Face's Conv1D stores its weight as (in, out).
    size = weight.shape[0] if type(layer).__name__ == "Conv1D" else weight.shape[1]
    identity = torch.nn.Linear(size, size, bias=False, dtype=weight.dtype)
    with torch.no_grad():
        identity.weight.copy_(torch.eye(size))
    layer.add_module(INSERTED, identity.eval().requires_grad_(False))

    def first(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (identity(args[0]), *args[1:])

    layer.register_forward_pre_hook(first)

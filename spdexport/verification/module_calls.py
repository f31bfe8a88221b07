"""Running the module itself, as the capture edge does, and finding the first of its parts that diverges."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from spdexport.arrays import to_numpy, to_torch
from spdexport.capture import call_module
from spdexport.conv import stored_weight
from spdexport.names import layer_of_call
from spdexport.rewrite.torch_graph import PRODUCTS, module_path, operands, spatial_axes
from spdexport.verification.locate import first_divergent_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.planning import Plan
    from spdexport.verification.inputs import Case


def first_divergent_module(
    module: torch.nn.Module,
    replaced: Mapping[str, torch.Tensor],
    program: ExportedProgram,
    case: Case,
    *,
    unit_rounding: float,
) -> str | None:
    """Return the first part of the module, in the order of computation, whose output is not the program's.

    Only parts that contain no others and run once are looked at, and none of a scripted module, which takes no hooks.

    Args:
        module: The module, which runs on the case.
        replaced: As for ``call_module``.
        program: What the module should compute.
        case: The inputs that showed the fault.
        unit_rounding: Of the model's dtype.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return None
    seen: dict[str, list[torch.Tensor]] = {}

    def watch(path: str, output: object) -> None:
        seen.setdefault(path, []).append(output.clone() if isinstance(output, torch.Tensor) else torch.empty(0))

    with _hooks(module, watch):
        call_module(module, case.inputs, replaced)
    last = {module_path(node): node.name for node in program.graph.nodes if node.op == "call_function"}
    values: dict[str, Array] = {
        last[path]: to_numpy(found[0]) for path, found in seen.items() if path in last and len(found) == 1
    }
    return first_divergent_node(program, case, values, unit_rounding=unit_rounding)


def effective_parameters(
    module: torch.nn.Module, program: ExportedProgram, plan: Plan
) -> dict[str, torch.Tensor] | None:
    """Return the effective weights by the module's own parameter names.

    None where they cannot be exchanged in the module.

    That is where a changed weight is computed, or one that a function uses which is no layer. Found from the layers'
    names alone, not through the traced graph, so that a weight put into the wrong node shows.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    changed: dict[str, torch.Tensor] = {}
    for site, form in plan.dense_forms():
        node, layer = nodes[site.node], layer_of_call(site.name)
        effective = stored_weight(np.asarray(form.stages[0].weight), site.spec)
        if node.target in PRODUCTS:  # of which the weight is the second factor
            effective = np.ascontiguousarray(effective.T)
        weight = parameters.get(f"{layer}.weight")
        if isinstance(module, torch.jit.ScriptModule) or weight is None or weight.shape != effective.shape:
            return None
        is_own = module_path(node) == layer or not _is_read_elsewhere(node)
        if not (_is_stored(node) and is_own):
            return None
        changed[f"{layer}.weight"] = to_torch(effective)
        bias = form.stages[-1].bias
        if bias is not None and bias is not site.bias:  # a given form has one of its own
            if f"{layer}.bias" not in parameters:
                return None
            changed[f"{layer}.bias"] = to_torch(bias)
    return changed


def _is_stored(node: torch.fx.Node) -> bool:
    """Whether the weight of a layer is stored, and not computed: stored tensors are inputs of torch's graphs."""
    return bool(operands(node).weight.op == "placeholder")


def _is_read_elsewhere(node: torch.fx.Node) -> bool:
    """Whether what is no layer reads the weight of a layer."""
    return any(user.op != "call_function" or spatial_axes(user) is None for user in operands(node).weight.users)


@contextlib.contextmanager
def _hooks(module: torch.nn.Module, watch: Callable[[str, object], None]) -> Iterator[None]:
    """Shows what every part without parts gives, while the block runs."""
    with contextlib.ExitStack() as stack:
        for path, part in module.named_modules():
            if path and not any(part.children()):

                def hook(_: torch.nn.Module, __: object, output: object, path: str = path) -> None:
                    watch(path, output)

                stack.callback(part.register_forward_hook(hook).remove)
        yield

"""What is known of each layer of a plan: the error of its weights, what that can do to its output, and what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from spdexport.names import layer_of_call
from spdexport.verification.inputs import input_names
from spdexport.verification.layers import judged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.export import ExportedProgram

    from spdexport.conv import ConvSpec
    from spdexport.planning import Plan
    from spdexport.verification.inputs import Case
    from spdexport.verification.result import LayerResult
    from spdexport.verification.weight_errors import WeightError


_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


class Patches:
    """The largest 2-norm of a patch that each layer of a plan reads, over all evaluations that were watched.

    Args:
        program: The program that is evaluated; its layers stand under the nodes of the plan's sites.
        plan: The layers.
    """

    def __init__(self, program: ExportedProgram, plan: Plan) -> None:
        nodes = {node.name: node for node in program.graph.nodes}
        inputs = set(input_names(program))
        self._readers: dict[str, list[tuple[str, ConvSpec]]] = {}
        for decision in plan.decisions:
            node = nodes.get(decision.site.node)
            data = node.all_input_nodes if node is not None else []
            # Of an addmm the data are the second operand; weights and biases are placeholders of parameters.
            for source in data:
                if source.name in inputs or source.op == "call_function":
                    self._readers.setdefault(source.name, []).append((decision.site.name, decision.site.spec))
                    break
        self._largest: dict[str, float] = {}

    def watch(self, name: str, value: torch.Tensor) -> None:
        """Take in a node's value in float64."""
        for layer, spec in self._readers.get(name, ()):
            largest = largest_patch(value, spec)
            self._largest[layer] = max(self._largest.get(layer, 0.0), largest)

    def watch_inputs(self, program: ExportedProgram, case: Case) -> None:
        """Take in the inputs of a case, which are no node's value."""
        for name, value in zip(input_names(program), case.inputs.tensors(), strict=True):
            if value.is_floating_point():
                self.watch(name, value.double())

    def of(self, layer: str) -> float | None:
        """The largest patch that a layer read; None where it was not seen."""
        return self._largest.get(layer)


def largest_patch(value: torch.Tensor, spec: ConvSpec) -> float:
    """The largest 2-norm of all that a layer reads for one output location: every input channel under the kernel.

    Args:
        value: The layer's input, shape (batch, in_channels, ...) or (in_channels, ...); (..., in_features) for a linear
            layer.
        spec: The layer's geometry.
    """
    squares = value.double() ** 2
    if not squares.numel():
        return 0.0
    if not spec.axes:
        return float(squares.sum(-1).max().sqrt())
    batched = squares if squares.ndim == spec.axes + 2 else squares[None]
    total = batched.sum(1, keepdim=True)
    kernel = torch.ones((1, 1, *spec.kernel), dtype=torch.float64)
    if spec.transposed:
        # Without its padding, which only crops.
        spread: Callable[..., torch.Tensor] = _TRANSPOSED[spec.axes - 1]
        return _root(spread(total, kernel, stride=spec.stride, dilation=spec.dilation))
    padding = [side for pair in reversed(spec.padding) for side in pair]
    convolve: Callable[..., torch.Tensor] = _CONVOLUTIONS[spec.axes - 1]
    return _root(convolve(functional.pad(total, padding), kernel, stride=spec.stride, dilation=spec.dilation))


def _root(sums: torch.Tensor) -> float:
    return float(sums.max().clamp(min=0).sqrt()) if sums.numel() else 0.0


def layer_results(
    plan: Plan,
    errors: Callable[[str], WeightError | None],
    patches: Callable[[str], float | None],
    ratios: Mapping[str, float],
) -> tuple[LayerResult, ...]:
    """What is known of each layer, in the plan's order.

    Args:
        plan: The layers.
        errors: What is known of a layer's weights, by its name without the number of a call.
        patches: The largest patch that a layer read, by its name.
        ratios: The noise ratios of outputs, by names without the number of a call; empty where they were not asked for.
    """
    found = []
    for decision in plan.decisions:
        name = decision.site.name
        error, patch = errors(layer_of_call(name)), patches(name)
        bound = None
        if error is not None and patch is not None:
            bound = (error.norm * patch if error.norm and patch else 0.0) + error.bias_norm
        found.append(judged(name, None if error is None else error.ratio, ratios.get(layer_of_call(name)), bound))
    return tuple(found)

"""What is known of each layer of a plan: the error of its weights, what that can do to its output, and what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from spdexport.names import layer_of_call
from spdexport.rewrite.onnx_scopes import node_keys
from spdexport.verification.inputs import input_names
from spdexport.verification.layers import judged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import onnx_ir as ir
    from torch.export import ExportedProgram

    from spdexport.conv import Array, ConvSite, ConvSpec
    from spdexport.planning import Plan
    from spdexport.verification.result import LayerResult
    from spdexport.verification.weight_errors import WeightError


_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


class Patches:
    """The largest 2-norm of a patch that each layer of a plan reads, over all evaluations that were watched.

    Args:
        read: The values that layers read, each with the name that the evaluation has for it.
    """

    def __init__(self, read: Iterable[tuple[str, ConvSite]]) -> None:
        self._readers: dict[str, list[tuple[str, ConvSpec]]] = {}
        for value, site in read:
            self._readers.setdefault(value, []).append((site.name, site.spec))
        self._largest: dict[str, float] = {}

    def watch(self, name: str, value: torch.Tensor) -> None:
        """Take in a value in float64."""
        for layer, spec in self._readers.get(name, ()):
            largest = largest_patch(value, spec)
            self._largest[layer] = max(self._largest.get(layer, 0.0), largest)

    def watch_inputs(self, inputs: Mapping[str, Array]) -> None:
        """Take in the inputs of a case, which are no node's value."""
        for name, value in inputs.items():
            if value.dtype.kind == "f":
                self.watch(name, torch.from_numpy(value.astype("float64")))

    def of(self, layer: str) -> float | None:
        """Return the largest patch that a layer read; None where it was not seen."""
        return self._largest.get(layer)


def read_in_program(program: ExportedProgram, plan: Plan) -> Iterator[tuple[str, ConvSite]]:
    """Return the values that the layers of a plan read in a program, by the nodes of their sites."""
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = set(input_names(program))
    for decision in plan.decisions:
        node = nodes.get(decision.site.node)
        # Of an addmm the data are the second operand; weights and biases are placeholders of parameters.
        for source in node.all_input_nodes if node is not None else []:
            if source.name in inputs or source.op == "call_function":
                yield source.name, decision.site
                break


def read_in_model(model: ir.Model, plan: Plan) -> Iterator[tuple[str, ConvSite]]:
    """Yield the values that the layers of a plan read in the ONNX model that they were found in."""
    nodes = node_keys(model.graph)
    for decision in plan.decisions:
        data = nodes[decision.site.node].inputs[0]
        if data is not None and data.name:
            yield data.name, decision.site


def largest_patch(value: torch.Tensor, spec: ConvSpec) -> float:
    """Return the largest 2-norm of all that a layer reads for one output location.

    Every input channel under the kernel.

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
    """Return what is known of each layer, in the plan's order.

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

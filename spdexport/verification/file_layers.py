"""The float64 evaluation of a file, and the layers of a file judged by that of its own or of another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spdexport.files.onnx_reading import reload_proto
from spdexport.ort.sessions import SessionSettings
from spdexport.reference.noise import Noise
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.rounding_onnx import PRODUCTS
from spdexport.rewrite.onnx_graph import read_layer
from spdexport.rewrite.onnx_scopes import outermost, scopes
from spdexport.rewrite.stages import ReadStage
from spdexport.verification.layers import layer_of
from spdexport.verification.tapping import as_it_is, channel_ratio, diverges, tapped
from spdexport.verification.trial import NOISE_RUNS, largest_finite, rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    import onnx_ir as ir

    from spdexport.conv import Array
    from spdexport.reference.decisions import Decide
    from spdexport.reference.unavailable import ReferenceUnavailable
    from spdexport.verification.tapping import Meant


class Evaluated:
    """The float64 evaluation of a file, with what is learned on the way.

    Attributes:
        macs_per_sample: Multiply-accumulates of the last run without noise, over the size of its batch.
        overflows: Whether an inner value of that run was too large for the dtype that the file has it in.
        hidden: The values that could not be computed in the last run, by the node that hides them.
        reached: The names of all values that were computed in any run.
    """

    def __init__(self, path: Path, model: ir.Model) -> None:
        self._path = path
        self._reference: OnnxReference | None = None
        self._limits: dict[str, float] = {}
        self._macs: dict[str, int] = {}
        for node in model.graph.all_nodes():
            for value in node.outputs:
                if value.name and value.dtype is not None and value.dtype.is_floating_point():
                    self._limits[value.name] = largest_finite(value.dtype.numpy())
            weight = node.inputs[1].const_value if node.op_type in PRODUCTS and node.inputs[1] is not None else None
            if weight is not None and node.outputs[0].name:
                outs = weight.shape[0] if node.op_type == "Conv" else weight.shape[-1]
                self._macs[node.outputs[0].name] = int(weight.size) // max(int(outs), 1)  # type: ignore[arg-type]
        self.macs_per_sample = 0.0
        self.overflows = False
        self.hidden: Mapping[str, ReferenceUnavailable] = {}
        self.reached: set[str] = set()

    def run(
        self,
        inputs: Mapping[str, Array],
        noise: Noise | None = None,
        watch: Callable[[str, Array], None] | None = None,
        decide: Decide | None = None,
        replaced: Mapping[str, Callable[[Array], Array]] | None = None,
    ) -> dict[str, Array]:
        """Return the outputs by name, without those that are hidden.

        ``watch`` is shown the inner values as they come, ``decide`` what chooses; ``replaced`` computes values in the
        place of nodes.

        Raises:
            ReferenceUnavailable: A node cannot be evaluated.
        """
        if self._reference is None:
            proto = reload_proto(self._path)
            self._reference = OnnxReference(proto, self._path.parent, is_partial=True)
        macs, overflows = 0, False

        def see(name: str, value: Array) -> None:
            nonlocal macs, overflows
            self.reached.add(name)
            macs += value.size * self._macs.get(name, 0)
            if value.dtype.kind == "f" and value.size and name in self._limits:
                sizes = np.abs(value[np.isfinite(value)])
                overflows = overflows or bool(sizes.max(initial=0) > self._limits[name])
            if watch is not None:
                watch(name, value)

        seen = watch if noise is not None else see
        outputs = self._reference.run(inputs, noise=noise, watch=seen, decide=decide, replaced=replaced)
        self.hidden = self._reference.hidden
        if noise is None:
            batch = next((a.shape[0] for a in inputs.values() if a.ndim), 1)
            self.macs_per_sample, self.overflows = macs / max(batch, 1), overflows
        return outputs


def hidden_layers(model: ir.Model, hidden: Collection[str]) -> list[str]:
    """Return the layers, in the order of computation, whose outputs are among values that were not computed.

    Of a node with bodies, these are its layers too.
    """
    around = outermost(model.graph)
    nodes = (node for node in around if node.op_type in PRODUCTS)
    gone = (node for node in nodes if any(v.name in hidden for v in (*node.outputs, *around[node].outputs)))
    return list(dict.fromkeys(map(layer_of, gone)))


def unreached(model: ir.Model, reached: Collection[str]) -> list[str]:
    """Return the places of the bodies with layers of which no value was computed: no input took that branch."""
    return [
        scope.place
        for scope in scopes(model.graph)
        if scope.place
        and any(isinstance(read_layer(node), ReadStage) for node in scope.graph)
        and not any(value.name in reached for node in scope.graph for value in node.outputs)
    ]


def first_divergent(
    path: Path,
    model: ir.Model,
    evaluated: Evaluated,
    inputs: Mapping[str, Array],
    settings: SessionSettings,
    *,
    unit_rounding: float,
    meant: Meant = as_it_is,
    decide: Decide | None = None,
) -> str | None:
    """Return the first layer, in the order of computation, whose value in a session is more than rounding off.

    Args:
        path: The file that runs.
        model: The model that is right; its values are known by their names.
        evaluated: Its evaluation.
        inputs: By name.
        settings: Of the session.
        unit_rounding: Of the model's dtype.
        meant: What the file has for a value of the model.
        decide: Makes the model choose as the session does.

    Raises:
        RuntimeFailure: The file does not run with all its values as outputs.
    """
    layers = {v.name: layer_of(node) for node in model.graph for v in node.outputs if v.name}
    values = tapped(path, layers, inputs, settings)
    exact = {
        n: value for n, value in _exact(evaluated, inputs, values, meant, decide).items() if value.dtype.kind == "f"
    }
    off: list[str] = []

    def watch(name: str, noisy: Array) -> None:
        seen = meant(name, noisy) if name in exact and not off else None
        if seen is not None and diverges(name, values[name], exact[name], _others(name, values, exact, seen)):
            off.append(name)

    evaluated.run(inputs, Noise(seed=0, unit_rounding=unit_rounding), watch=watch, decide=decide)
    return layers[off[0]] if off else None


def layer_ratios(
    path: Path,
    model: ir.Model,
    evaluated: Evaluated,
    inputs: Mapping[str, Array],
    *,
    unit_rounding: float,
    meant: Meant = as_it_is,
    decide: Decide | None = None,
) -> dict[str, float]:
    """Return the noise ratio of each layer's output, in the worst channel, from one unoptimized session on the CPU.

    A layer is what has a constant weight: of several nodes that have the same layer's weights, the last counts.

    Args:
        path: The file that runs.
        model: The model that is right.
        evaluated: Its evaluation.
        inputs: By name.
        unit_rounding: Of the model's dtype.
        meant: What the file has for a value of the model.
        decide: Makes the model choose as the session does.

    Raises:
        RuntimeFailure: The file does not run with all its values as outputs.
    """
    ends: dict[str, str] = {}
    axes: dict[str, int] = {}
    for node in model.graph:
        weight = node.inputs[1] if node.op_type in PRODUCTS and len(node.inputs) > 1 else None
        name = node.outputs[0].name if node.outputs else None
        if weight is not None and weight.const_value is not None and name:
            ends[layer_of(node)] = name
            axes[name] = 1 if node.op_type in ("Conv", "ConvTranspose") else -1
    layers = {name: layer for layer, name in ends.items()}
    values = tapped(path, layers, inputs, SessionSettings(spinning=False))
    exact = _exact(evaluated, inputs, values, meant, decide)
    explained: dict[str, list[Array]] = {name: [] for name in exact}
    for run in range(NOISE_RUNS):

        def watch(name: str, noisy: Array) -> None:
            seen = meant(name, noisy) if name in exact else None
            if seen is not None:
                explained[name].append(seen)

        evaluated.run(inputs, Noise(seed=run, unit_rounding=unit_rounding), watch=watch, decide=decide)
    return {
        layers[name]: channel_ratio(
            values[name], exact[name], [*_others(name, values, exact), *explained[name]], unit_rounding, axes[name]
        )
        for name in exact
    }


def _exact(
    evaluated: Evaluated, inputs: Mapping[str, Array], wanted: Mapping[str, Array], meant: Meant, decide: Decide | None
) -> dict[str, Array]:
    kept: dict[str, Array] = {}

    def watch(name: str, value: Array) -> None:
        seen = meant(name, value) if name in wanted else None
        if seen is not None:
            kept[name] = seen

    evaluated.run(inputs, watch=watch, decide=decide)
    return kept


def _others(name: str, values: Mapping[str, Array], exact: Mapping[str, Array], *noisy: Array) -> list[Array]:
    """What an honest evaluation in the file's dtype would give, and runs with noise."""
    return [rounded(exact[name], values[name].dtype), *noisy]

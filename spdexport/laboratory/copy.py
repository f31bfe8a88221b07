"""The copy of a file that a browser runs: masks that must be given, and gates whose thresholds are inputs.

ONNX Runtime for browsers takes no input that a file has a default for, so that what is optional in the file is required
in its copy. A gate ``g`` with a threshold ``t`` becomes

    where(isnan(t), g, g > t)

in the place of ``g``, or of ``g > T`` where the file has a threshold of its own, T. So ``t`` = NaN gives a file without
threshold, ``t`` = T the one that ``convert --gate-threshold T`` writes, and ``t`` = -infinity switches the gates off.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from spdexport.ablation.active import recorded_layers
from spdexport.ablation.masked_runs import BESIDE, MASK, read_runtime_masks
from spdexport.errors import SourceError
from spdexport.laboratory.layers import LabLayer, Switch, Threshold
from spdexport.model_files import METADATA_PREFIX, read_metadata
from spdexport.names import some
from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_graph import is_operator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from spdexport.conv import Array

IMPORTANCE, ACTIVATION = "ci/", "activation/"
THRESHOLD = "gate_threshold/"

_OPSET = 9
"""The first opset with the operators that thresholds are made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """The copy.

    Attributes:
        model: It; its record of how it was made is not in it, for it is another file.
        layers: Those that can be switched, in the file's order.
        outputs: The float outputs that are the model's own.
        notes: What the user should know.
    """

    model: ir.Model
    layers: tuple[LabLayer, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def neutral(self) -> dict[str, Array]:
        """What the inputs beside the model's own have, for one sample, where the copy does what the file does."""
        switches = [s for layer in self.layers for s in (layer.mask, layer.delta, layer.routing) if s is not None]
        thresholds = [layer.threshold for layer in self.layers if layer.threshold is not None]
        return {
            **{switch.input: np.ones(switch.shape, np.float32) for switch in switches},
            **{t.input: np.array([np.nan if t.value is None else t.value], np.float32) for t in thresholds},
        }


def copied(model: ir.Model, path: Path) -> Copied:
    """Make the copy of a file, and tell what can be switched in it.

    Args:
        model: The file, which becomes the copy.
        path: Its name, for messages.

    Raises:
        SourceError: There is nothing to switch, or a mask is not of float32.
    """
    metadata = read_metadata(model)
    _check_dtypes(model, path)
    for value in model.graph.inputs:
        name = value.name or ""
        if name.startswith(BESIDE) and name in model.graph.initializers:
            model.graph.initializers.pop(name)
            value.const_value = None
    layers, notes = _layers(model, recorded_layers(metadata))
    if not layers:
        raise SourceError(
            "The file has no run-time masks and no gates, so that there is nothing to switch.",
            where=str(path),
            hint="Convert it with --runtime-masks all; of an SPD run, convert --gates --gate-outputs adds its gates.",
        )
    for key in [key for key in model.metadata_props if key.startswith(METADATA_PREFIX)]:
        del model.metadata_props[key]
    own = [v for v in model.graph.outputs if not (v.name or "").startswith((IMPORTANCE, ACTIVATION))]
    outputs = tuple(v.name or "" for v in own if v.dtype is ir.DataType.FLOAT)
    if not outputs:
        raise SourceError(
            "The file has no output of float32 that a page could show.",
            where=str(path),
            hint="Convert the model in float32.",
        )
    return Copied(model=model, layers=layers, outputs=outputs, notes=tuple(notes))


def _check_dtypes(model: ir.Model, path: Path) -> None:
    for value in model.graph.inputs:
        if (value.name or "").startswith(BESIDE) and value.dtype is not ir.DataType.FLOAT:
            dtype = "of no known type" if value.dtype is None else value.dtype.name.lower()
            raise SourceError(
                f"The mask input {value.name} is {dtype}, and a page gives float32 alone.",
                where=str(path),
                hint="Convert the model in float32.",
            )


def _layers(model: ir.Model, recorded: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[LabLayer, ...], list[str]]:
    inputs = {value.name or "": value for value in model.graph.inputs}
    outputs = {value.name or "": value for value in model.graph.outputs}
    masks = {mask.layer: mask for mask in read_runtime_masks(model).values()}
    gated = [name.removeprefix(IMPORTANCE) for name in outputs if name.startswith(IMPORTANCE)]
    layers, without = [], []
    for name in dict.fromkeys((*masks, *gated)):
        importance = outputs.get(IMPORTANCE + name)
        threshold = None
        if importance is not None:
            threshold = _with_threshold(model, name, importance)
            if threshold is None:
                without.append(name)
        components = masks[name].channels if name in masks else _last(importance)
        if components is None or (name not in masks and threshold is None):
            continue
        layers.append(
            LabLayer(
                name=name,
                components=components,
                mask=_switch(inputs.get(MASK + name)),
                delta=_switch(inputs.get(f"delta_mask/{name}")),
                routing=_switch(inputs.get(f"routing/{name}")),
                threshold=threshold,
                importance=None if importance is None else importance.name,
                activation=ACTIVATION + name if ACTIVATION + name in outputs else None,
                delta_use=str(recorded.get(name, {}).get("delta", "")),
            )
        )
    notes = []
    if without:
        notes.append(f"no threshold can be set for {some(without)}: the gate is not where spdexport puts it")
    return tuple(layers), notes


def _last(value: ir.Value | None) -> int | None:
    size = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) > 1 else None
    return size if isinstance(size, int) else None


def _switch(value: ir.Value | None) -> Switch | None:
    if value is None or value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else 1 for size in value.shape]
    return Switch(input=value.name or "", shape=(1, *sizes[1:]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Gate:
    """Where a gate is read: what gives its importances, and the readers whose input the mask is."""

    importances: ir.Value
    readers: tuple[tuple[ir.Node, int], ...]
    value: float | None


def _with_threshold(model: ir.Model, layer: str, shown: ir.Value) -> Threshold | None:
    """Put an input for the threshold of a layer's gate into the graph; None where the gate is not as it is written."""
    gate = _gate(shown)
    taken = Counter(value.name for value in model.graph.inputs)
    name = f"{THRESHOLD}{layer}"
    producer = gate.importances.producer() if gate is not None else None
    if gate is None or producer is None or taken[name] or (model.opset_imports.get("") or 0) < _OPSET:
        return None
    dtype = ir.TensorType(ir.DataType.FLOAT)
    threshold = ir.Value(name=name, shape=ir.Shape([1]), type=dtype)
    model.graph.inputs.append(threshold)
    above = ir.node("Greater", [gate.importances, threshold], name=f"{name}/above")
    hard = ir.node("Cast", [above.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}/hard")
    soft = ir.node("IsNaN", [threshold], name=f"{name}/soft")
    mask = ir.node("Where", [soft.outputs[0], gate.importances, hard.outputs[0]], name=f"{name}/mask")
    for node in (above, hard, soft, mask):
        node.outputs[0].name = f"{node.name}/value"
    mask.outputs[0].shape, mask.outputs[0].type = gate.importances.shape, dtype
    model.graph.insert_after(producer, [above, hard, soft, mask])
    for node, index in gate.readers:
        node.replace_input_with(index, mask.outputs[0])
    return Threshold(input=name, value=gate.value)


def _gate(shown: ir.Value) -> _Gate | None:
    """Find what reads the importances that an output shows, itself or in front of a transposition."""
    producer = shown.producer()
    sources = [shown]
    if producer is not None and is_operator(producer, "Transpose") and producer.inputs[0] is not None:
        sources.append(producer.inputs[0])
    if shown.dtype is not ir.DataType.FLOAT:
        return None
    readers = [(source, [use for use in _uses(source) if use[0] is not producer]) for source in sources]
    read = [(source, uses) for source, uses in readers if uses]
    if len(read) != 1:
        return None
    ((source, uses),) = read
    if all(is_operator(node, "Mul") for node, _ in uses):
        return _Gate(importances=source, readers=tuple(uses), value=None)
    if len(uses) != 1 or not is_operator(uses[0][0], "Greater") or uses[0][1] != 0:
        return None
    compare = uses[0][0]
    number = constant(compare.inputs[1])
    casts = list(_uses(compare.outputs[0]))
    if (
        number is None
        or number.size != 1
        or not np.isfinite(number).all()
        or len(casts) != 1
        or not is_operator(casts[0][0], "Cast")
    ):
        return None
    products = tuple(_uses(casts[0][0].outputs[0]))
    if not products or not all(is_operator(node, "Mul") for node, _ in products):
        return None
    return _Gate(
        importances=source, readers=products, value=float(str(number.reshape(-1)[0]))
    )  # 0.1, and not what float32 makes of it


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    for use in value.uses():
        yield use.node, use.idx

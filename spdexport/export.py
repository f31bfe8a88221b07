"""ExportedProgram to an ONNX model in memory, with named inputs, outputs and axes."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
import torch.utils._pytree as pytree
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

from spdexport.errors import ExportError
from spdexport.quiet import quiet
from spdexport.rewrite.onnx_exported import drop_zero_biases, tidy
from spdexport.rewrite.torch_graph import spatial_axes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.export import ExportedProgram

KEPT_NODE_METADATA = ("pkg.torch.onnx.name_scopes",)
"""Node metadata that stays: the module path. The rest holds stack traces with paths of the exporting machine."""

BFLOAT16_OPSET = 22
"""The first opset whose convolutions take bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exported:
    """An ONNX model and the program whose nodes have the names of its values.

    Attributes:
        model: The ONNX model; weights are views of the program's tensors.
        lowered: The program after the exporter's own lowering of operators.
    """

    model: ir.Model
    lowered: ExportedProgram


def export_onnx(
    program: ExportedProgram,
    *,
    opset: int | None = None,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    outputs: Sequence[str] = (),
) -> Exported:
    """Export a program, in memory.

    Args:
        program: Any ExportedProgram in eval mode.
        opset: The opset that the model must have; None for the exporter's default.
        axes: Names for dynamic axes: input name to axis to name. Further ones are called after their input and axis.
        outputs: Names of the outputs that the program has in a dict behind its own result (``torch_ports``).

    Raises:
        ExportError: An operator has no ONNX form, or the exporter gives another opset than asked for.
    """
    translated = translate(program, opset=opset)
    model = finish(translated.model, program, axes=axes, outputs=outputs)
    return Exported(model=model, lowered=translated.lowered)


def translate(program: ExportedProgram, *, opset: int | None = None) -> Exported:
    """Lower a program and write it in ONNX operators, as ``export_onnx`` does before it optimizes the graph.

    Args:
        program: Any ExportedProgram in eval mode.
        opset: As for ``export_onnx``.

    Raises:
        ExportError: As ``export_onnx`` does; or the model has convolutions in bfloat16, which the opset has not.
    """
    if opset is None and _has_bfloat16_convolutions(program):
        opset = BFLOAT16_OPSET
    elif opset is not None and opset < BFLOAT16_OPSET and _has_bfloat16_convolutions(program):
        raise ExportError(
            f"Conv takes bfloat16 from opset {BFLOAT16_OPSET} on, and the model has convolutions in bfloat16.",
            where=f"--opset {opset}",
            hint=f"Ask for opset {BFLOAT16_OPSET} or more, or leave --opset out.",
        )
    with _exporting():
        result = torch.onnx.export(program, dynamo=True, optimize=False, opset_version=opset, verbose=False)
    assert result is not None, "the dynamo exporter returns its program"
    assert result.exported_program is not None, "and keeps what it lowered"
    got = result.model.opset_imports.get("", 0)
    if opset is not None and got != opset:
        raise ExportError(
            f"The exporter gives opset {got} where {opset} was asked for.",
            where="--opset",
            hint=f"Ask for opset {got}, or leave --opset out.",
        )
    drop_zero_biases(result.model)
    return Exported(model=result.model, lowered=result.exported_program)


def finish(
    model: ir.Model,
    program: ExportedProgram,
    *,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    outputs: Sequence[str] = (),
) -> ir.Model:
    """Optimize a translated graph as the exporter does, and give it the names that a file has; the graph is changed.

    Args:
        model: What ``translate`` made of a program, perhaps with other layers.
        program: The program, or one with the same inputs and outputs.
        axes: As for ``export_onnx``.
        outputs: As for ``export_onnx``.

    Raises:
        ExportError: The optimizer fails.
    """
    with _exporting():
        result = torch.onnx.ONNXProgram(model, program)
        result.optimize()
    model = result.model
    _restore_dtypes(model)
    _name_inputs(model, program)
    _name_axes(model, axes or {})
    _name_outputs(model, program, outputs)
    tidy(model)
    _clean_metadata(model)
    return model


def _has_bfloat16_convolutions(program: ExportedProgram) -> bool:
    values = (node.meta.get("val") for node in program.graph.nodes if spatial_axes(node))
    return any(isinstance(value, torch.Tensor) and value.dtype is torch.bfloat16 for value in values)


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """Run torch's exporter: without gradients, silently, its errors told as one of ours."""
    try:
        # With gradients on, attention would take another kernel than it had in the trace, with other strides.
        with torch.no_grad(), quiet():
            yield
    except Exception as error:
        raise ExportError(
            f"torch.onnx.export fails: {_root_cause(error)}",
            where="the exporter",
            hint="Try torch.onnx.export on the model by itself; spdexport changes only convolutions and linear layers.",
        ) from error


def _root_cause(error: BaseException) -> str:
    """The first line of the error at the bottom of the chain: the exporter wraps it several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _restore_dtypes(model: ir.Model) -> None:
    """Give weights the dtype of what they are multiplied with.

    Folding batch norm into them, the exporter makes those of a bfloat16 layer float32, which is no valid ONNX.
    """
    for node in model.graph.all_nodes():
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.inputs[0] is None:
            continue
        dtype = node.inputs[0].dtype
        for value in node.inputs[1:]:
            tensor = None if value is None else value.const_value
            if value is None or tensor is None or not value.is_initializer() or tensor.dtype is dtype or dtype is None:
                continue
            value.const_value = ir.tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=value.name)
            value.dtype = dtype


def _name_inputs(model: ir.Model, program: ExportedProgram) -> None:
    """Call inputs as the program does: one that is an output as well comes out of the exporter as ``x_orig``."""
    specs = program.graph_signature.input_specs
    names = [s.arg.name for s in specs if s.kind is InputKind.USER_INPUT and isinstance(s.arg, TensorArgument)]
    for value, name in zip(model.graph.inputs, names, strict=True):
        if value.name != name:
            _free(model, name, for_value=value)
            value.name = name


def _free(model: ir.Model, name: str, *, for_value: ir.Value) -> None:
    """Take a name from the value inside of the graph that has it, so that another one can have it."""
    for node in model.graph:
        for other in node.outputs:
            if other.name == name and other is not for_value:
                other.name = f"{name}_value"


def _name_axes(model: ir.Model, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Give symbolic dimensions, which the exporter calls ``s77``, the names that were asked for."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            symbol = dim.value if isinstance(dim, ir.SymbolicDim) else None
            wanted = axes.get(value.name or "", {}).get(axis)
            if symbol is None or symbol in names or not re.fullmatch(r"[su]\d+", symbol):
                continue
            fallback = "batch" if axis == 0 and "batch" not in names.values() else f"{value.name}_dim{axis}"
            names[symbol] = wanted or fallback
    if not names:
        return

    def renamed(shape: ir.Shape) -> ir.Shape:
        def dim(d: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
            if isinstance(d, int) or d.value is None:
                return d
            return ir.SymbolicDim(re.sub(r"\b[su]\d+\b", lambda m: names.get(m[0], m[0]), str(d.value)))

        return ir.Shape([dim(d) for d in shape])

    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [v for node in model.graph for v in node.outputs]
    for value in values:
        if value.shape is not None and any(isinstance(d, ir.SymbolicDim) for d in value.shape):
            value.shape = renamed(value.shape)


def _name_outputs(model: ir.Model, program: ExportedProgram, further: Sequence[str]) -> None:
    """Call outputs after the model's own structure: dict keys and field names; else ``output``, ``output_1``, ..."""
    spec = program.call_spec.out_spec
    # What is no tensor, such as None, has no place in the file.
    leaves = [s.arg for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    own = list(model.graph.outputs)
    if further:
        own = own[: -len(further)]
        for name, value in zip(further, model.graph.outputs[-len(further) :], strict=True):
            value.name = name
        assert spec is not None, "a program that was given outputs has a structure of them"
        spec, leaves = spec.children()[0], leaves[: -len(further)]
    if spec is None or spec.num_leaves != len(leaves):
        return
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths = [
        path
        for path, leaf in zip(pytree.tree_flatten_with_path(tree)[0], leaves, strict=True)
        if not isinstance(leaf, ConstantArgument)
    ]
    if len(paths) != len(own):
        return
    taken = {v.name for v in model.graph.inputs} | {v.name for v in model.graph.initializers.values()}
    for (path, _), value in zip(paths, own, strict=True):
        parts = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", "")))) for p in path]
        name = ".".join(parts)
        if not parts or all(part.isdigit() for part in parts):
            name = "_".join(["output", *parts]) if len(paths) > 1 else "output"
        if value.is_graph_input() or name in taken:
            continue
        taken.add(name)
        _free(model, name, for_value=value)
        value.name = name


def _clean_metadata(model: ir.Model) -> None:
    """Drop what differs from machine to machine, so that equal models have equal bytes."""
    from spdexport import __version__

    model.producer_name, model.producer_version = "spdexport", __version__
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    for node in model.graph.all_nodes():
        kept = {k: v for k, v in node.metadata_props.items() if k in KEPT_NODE_METADATA}
        node.metadata_props.clear()
        node.metadata_props.update(kept)
    for value in [*model.graph.inputs, *(v for n in model.graph.all_nodes() for v in n.outputs)]:
        value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()

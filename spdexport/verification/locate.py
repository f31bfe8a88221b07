"""Where a fault begins: the first layer, in the order of computation, whose output is more than rounding off."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from spdexport.runtime import RuntimeFailure, SessionSettings, open_session
from spdexport.verification.compare import compare
from spdexport.verification.layers import layer_of_weight
from spdexport.verification.result import Status
from spdexport.verification.trial import masked_floor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import torch
    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.verification.inputs import Case

TAPPING_HIDES = "with every layer tapped, which prevents fusions, no layer diverges"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inner:
    """The inner values of a model on one case, by name.

    Attributes:
        layers: The layer that computes each, in the order of computation.
        exact: In float64.
        own: In the model's dtype.
        noisy: In float64 with simulated rounding.
    """

    layers: Sequence[tuple[str, str]]
    exact: Mapping[str, Array]
    own: Mapping[str, Array]
    noisy: Mapping[str, Array]

    def first_divergent(self, values: Mapping[str, Array]) -> str | None:
        """The first layer at which some values are more than rounding off; None where none is."""
        for name, layer in self.layers:
            if name not in values or name not in self.exact or self.exact[name].dtype.kind != "f":
                continue
            exact = self.exact[name]
            floor = masked_floor(exact, self.own[name], [self.noisy[name]])
            if compare(name, values[name], exact, floor).status is Status.FAIL:
                return layer
        return None


def first_divergent_layer(
    program: ExportedProgram, reference: ExportedProgram, case: Case, *, unit_rounding: float
) -> str | None:
    """The first layer at which two programs differ in float64, both having node names in common.

    Args:
        program: The program under suspicion.
        reference: What it should compute.
        case: The inputs that showed the fault.
        unit_rounding: Of the model's dtype.
    """
    values: dict[str, Array] = {}
    names = {n.name for n in program.graph.nodes}
    _watch(program, case, names, values)
    inner = _inner(reference, case, names & {n.name for n in reference.graph.nodes}, unit_rounding)
    return inner.first_divergent(values)


def first_divergent_value(
    path: Path,
    lowered: ExportedProgram,
    case: Case,
    inputs: Mapping[str, Array],
    settings: SessionSettings,
    *,
    outputs: Sequence[str],
    unit_rounding: float,
) -> tuple[str | None, str]:
    """The first layer of a file that diverges from a program, found in one session with every value tapped.

    Args:
        path: The file.
        lowered: The program whose nodes have the names of the file's values.
        case: The inputs that showed the fault.
        inputs: The same by the file's input names.
        settings: Of the session that showed it.
        outputs: Names that the file has for the program's tensor outputs, which lost those of the nodes.
        unit_rounding: Of the model's dtype.

    Returns:
        The layer, or None; and a remark for the report.
    """
    known = {n.name for n in lowered.graph.nodes if n.op == "call_function"}
    ends = [getattr(a, "name", "") for a in lowered.graph.output_node().args[0]]
    renamed = dict(zip(outputs, [name for name in ends if name], strict=False))
    try:
        found = tapped(path, {*known, *renamed}, inputs, settings)
    except RuntimeFailure as error:
        return None, f"the layers could not be tapped: {error}"
    if not found:
        return None, "no inner value of the file has a name of the program's"
    values = {renamed.get(name, name): value for name, value in found.items()}
    inner = _inner(lowered, case, values.keys(), unit_rounding)
    # A layer that another was folded into has only the weight's name to tell it by.
    weights = {renamed.get(v.name or "", v.name): layer_of_weight(n) for n in ir.load(path).graph for v in n.outputs}
    layers = [(name, weights.get(name) or layer) for name, layer in inner.layers]
    layer = replace(inner, layers=layers).first_divergent(values)
    return layer, "" if layer else TAPPING_HIDES


def tapped(
    path: Path, names: Collection[str], inputs: Mapping[str, Array], settings: SessionSettings
) -> dict[str, Array]:
    """The inner float values of a file as ONNX Runtime computes them, in one session.

    Args:
        path: The file.
        names: Of the values wanted; those that the file does not have are left out.
        inputs: By the file's names.
        settings: Of the session.

    Raises:
        RuntimeFailure: The file with all values as outputs does not run.
    """
    model = ir.load(path)
    produced = [v for node in model.graph for v in node.outputs if v.name in names]
    floats = [v for v in produced if v.dtype is not None and v.dtype.is_floating_point()]
    model.graph.outputs.extend([v for v in floats if not v.is_graph_output()])
    wanted = [v.name for v in floats if v.name]
    if not wanted:
        return {}
    with _loadable(model, path) as source:
        return open_session(source, settings).run(inputs, wanted)


@contextlib.contextmanager
def _loadable(model: ir.Model, path: Path) -> Iterator[bytes | Path]:
    """The model as ONNX Runtime can load it: bytes, or where weights are outside, a file beside theirs."""
    weights = (v.const_value for v in model.graph.initializers.values())
    content = ir.to_proto(model).SerializeToString()
    if not any(isinstance(w, ir.ExternalTensor) for w in weights):
        yield content
        return
    try:
        handle, name = tempfile.mkstemp(suffix=".onnx", dir=path.parent)
    except OSError as error:
        raise RuntimeFailure(f"no file can be written beside the weights: {error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        yield Path(name)
    finally:
        Path(name).unlink()


def _inner(program: ExportedProgram, case: Case, names: Collection[str], unit_rounding: float) -> Inner:
    from spdexport.reference.torch_reference import Noise
    from spdexport.rewrite.torch_graph import module_path

    exact: dict[str, Array] = {}
    own: dict[str, Array] = {}
    noisy: dict[str, Array] = {}
    _watch(program, case, names, exact)
    _watch(program, case, names, own, float64=False)
    _watch(program, case, names, noisy, noise=Noise(seed=0, unit_rounding=unit_rounding))
    layers = [(n.name, module_path(n) or n.name) for n in program.graph.nodes if n.op == "call_function"]
    return Inner(layers=layers, exact=exact, own=own, noisy=noisy)


def _watch(
    program: ExportedProgram, case: Case, names: Collection[str], into: dict[str, Array], **settings: object
) -> None:
    from spdexport.arrays import to_numpy
    from spdexport.reference.torch_reference import evaluate

    def watch(name: str, tensor: torch.Tensor) -> None:
        if name in names:
            into[name] = to_numpy(tensor)

    keep: Callable[[str, torch.Tensor], None] = watch
    evaluate(program, case.inputs.args, case.inputs.kwargs, watch=keep, **settings)  # type: ignore[arg-type]

"""What a lab is held against: that the copy computes what the file does, and what the dense model answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.ablation.active import recorded_layers
from spdexport.ablation.masked_runs import BESIDE, SHOWN, opened_file
from spdexport.errors import ExampleInputError, ExportError, SourceError
from spdexport.files.onnx_reading import load_onnx
from spdexport.model_files import read_metadata
from spdexport.ort.sessions import RuntimeFailure, SessionSettings, open_session
from spdexport.verification.bounded import Bounded
from spdexport.verification.ports import input_ports

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from spdexport.ablation.active import Active
    from spdexport.conv import Array
    from spdexport.laboratory.copy import Copied
    from spdexport.laboratory.samples import Samples


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dense:
    """What the outputs are shown beside.

    Attributes:
        told: What it is, in a clause.
        is_dense: Whether that is the dense model, as far as the file's own record says.
        routed: Whether the page gets it by routing layers to their original weights, which the file has.
        outputs: The answers of a dense file, by the lab's outputs, axis 0 counting the samples; empty where the page
            computes them with all components on.
    """

    told: str
    is_dense: bool
    routed: bool
    outputs: Mapping[str, Array]


def check_copy(path: Path, content: bytes, copy: Copied, samples: Samples) -> None:
    """Run the file and its copy on every sample, without graph optimizations: all outputs must be equal bit for bit.

    Raises:
        ExampleInputError: The file does not run on the samples.
        SourceError: ONNX Runtime does not load the file, or it is beyond a limit.
        ExportError: The copy computes something else than the file.
    """
    file = opened_file(path, SessionSettings())
    beside = {port.name: _ones(port.shape) for port in file.inputs if port.required and port.name.startswith(BESIDE)}
    bounded = Bounded(path)
    try:
        own = open_session(content, SessionSettings())
    except RuntimeFailure as failure:
        raise _differs(path, f"ONNX Runtime does not load the copy: {failure}") from failure
    for index in range(samples.number):
        feeds = samples.one(index)
        bounded.check({**feeds, **beside})
        try:
            right = file.run({**feeds, **beside})
        except RuntimeFailure as failure:
            raise _does_not_run(failure, samples, "the file") from failure
        try:
            got = own.run({**feeds, **copy.neutral})
        except RuntimeFailure as failure:
            raise _differs(path, f"it does not run on sample {index}: {failure}") from failure
        for name, value in right.items():
            if not np.array_equal(value, got[name], equal_nan=value.dtype.kind == "f"):
                raise _differs(path, f"{name} differs on sample {index}")


def _ones(shape: tuple[int | str | None, ...]) -> Array:
    return np.ones([size if isinstance(size, int) else 1 for size in shape], np.float32)


def _differs(path: Path, what: str) -> ExportError:
    return ExportError(
        f"The copy of the file for the browser does not compute what the file does: {what}.",
        where=str(path),
        hint="Convert the model again with this version of spdexport; if that does not help, report it.",
    )


def _does_not_run(failure: RuntimeFailure, samples: Samples, what: str) -> ExampleInputError:
    return ExampleInputError(
        f"ONNX Runtime does not run {what} on one sample: {failure}",
        where=str(samples.files[0]),
        hint="Give the inputs that it takes, and convert it with --dynamic-batch.",
    )


def own_answers(model: ir.Model, copy: Copied, active: Active) -> Dense:
    """Tell what the file with all its components on is, by its own record, which nobody checked.

    Args:
        model: The file, not its copy.
        copy: Its copy.
        active: What is at work in every run.
    """
    recorded = recorded_layers(read_metadata(model))
    others = [entry for name, entry in recorded.items() if name not in {layer.name for layer in copy.layers}]
    changed = active.is_changed or any(e.get("delta") == "dropped" or e.get("truncates") for e in others)
    if changed:
        return _own("fixed masks, edits or ranks changed the model before it became this file")
    if all(layer.routing is not None for layer in copy.layers):
        return Dense(told="the original layers, which the file has", is_dense=True, routed=True, outputs={})
    gates = [layer.threshold for layer in copy.layers if layer.threshold is not None]
    if active.has_gates and len(gates) < len(copy.layers):
        return _own("gates are at work that cannot be switched off")
    uses, on = {layer.delta_use for layer in copy.layers}, _ON_GATED if gates else _ON
    if uses <= {"kept", "none"}:
        return Dense(told=f"{on}: the dense model", is_dense=True, routed=False, outputs={})
    why = "the weight delta is left out" if "dropped" in uses else "the file has no record of its weight delta"
    return _own(why, on)


_ON, _ON_GATED = "all components on", "all components on and no gates"


def _own(why: str, on: str = _ON) -> Dense:
    return Dense(told=f"{on}; {why}, so that this is not the dense model", is_dense=False, routed=False, outputs={})


def dense_answers(path: Path, copy: Copied, samples: Samples) -> Dense:
    """Run a dense file on the samples.

    Raises:
        SourceError: The file cannot be used, or has not the lab's outputs.
        ExampleInputError: It does not take the lab's inputs.
    """
    model = load_onnx(path)
    ports = [port for port in input_ports(model) if not port.name.startswith(BESIDE)]
    names = _inputs([port.name for port in ports], samples, path)
    wanted = _outputs([v.name or "" for v in model.graph.outputs], copy, path)
    session, bounded = opened_file(path, SessionSettings(optimized=True)), Bounded(path)
    found: dict[str, list[Array]] = {name: [] for name in wanted}
    for index in range(samples.number):
        feeds = {name: samples.one(index)[own] for name, own in names.items()}
        bounded.check(feeds)
        try:
            outputs = session.run(feeds, list(wanted.values()))
        except RuntimeFailure as failure:
            raise _does_not_run(failure, samples, f"{path.name}") from failure
        for name, theirs in wanted.items():
            found[name].append(outputs[theirs].astype(np.float32))
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    return Dense(told=f"the dense model, {path.name}", is_dense=True, routed=False, outputs=arrays)


def _inputs(theirs: list[str], samples: Samples, path: Path) -> dict[str, str]:
    own = list(samples.inputs)
    if set(theirs) == set(own):
        return {name: name for name in theirs}
    if len(theirs) == len(own) == 1:
        return {theirs[0]: own[0]}
    raise SourceError(
        f"The dense file takes {', '.join(theirs) or 'no inputs'}, and the data are {', '.join(own)}.",
        where=f"--dense {path}",
        hint="Give the dense file of the same model.",
    )


def _outputs(theirs: list[str], copy: Copied, path: Path) -> dict[str, str]:
    """Return the dense file's outputs by those of the lab: of the same name, or the only ones of both."""
    same = {name: name for name in copy.outputs if name in theirs}
    own = [name for name in theirs if not name.startswith(SHOWN)]
    if not same and len(own) == len(copy.outputs) == 1:
        same = {copy.outputs[0]: own[0]}
    if not same:
        raise SourceError(
            f"The dense file gives {', '.join(theirs)}, and the lab shows {', '.join(copy.outputs)}.",
            where=f"--dense {path}",
            hint="Give the dense file of the same model.",
        )
    return same

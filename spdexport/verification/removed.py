"""The weights edge of a file from which dead channels were removed: what is left is right, and what is gone was dead.

Three statements make one: the file is the whole graph without some channels; each of these was dead in the whole
graph; and the whole graph composes back to the plain export. The second is proved from the two graphs alone, by what
their operators compute (``channel_proof``), and not by the rules that the removal goes by.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.errors import ExampleInputError
from spdexport.files.onnx_reading import reload_proto
from spdexport.files.onnx_sizes import GIB
from spdexport.files.scratch import scratch_folder, writing_scratch
from spdexport.model_files import INLINE_UP_TO
from spdexport.names import count
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.unavailable import ReferenceUnavailable
from spdexport.rewrite.match import in_chains
from spdexport.verification.channel_proof import ChannelProof, Wrong
from spdexport.verification.computed import with_computed
from spdexport.verification.file_inputs import file_cases, guesses
from spdexport.verification.ports import input_ports
from spdexport.verification.result import EdgeResult, Status
from spdexport.verification.weights import WeightsFound, compare_weights

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.rewrite.match import Chain
    from spdexport.rewrite.onnx_dead import Removal
    from spdexport.rewrite.onnx_trim import Trimmed


def compare_trimmed(
    file: ir.Model,
    trimmed: Trimmed | None,
    plain: ir.Model,
    example: Mapping[str, Array] | None = None,
    *,
    chains: Collection[Chain] = (),
) -> WeightsFound:
    """Compare a file with the plain export of the model with effective weights, dead channels apart.

    Args:
        file: The file, as it was read back.
        trimmed: What was removed from what; None for nothing.
        plain: What the whole graph is to compose back to.
        example: Inputs that the whole graph takes, by name, whose sizes are known to be right; None to guess them.
        chains: The stages of the forms of several kernels that layers take, which stand for one layer each.
    """
    beyond = in_chains(chains) if chains else None
    # Padding adds components of zeros, which composing takes away: it is compared with the model without them.
    if trimmed is None or (trimmed.removal.model is trimmed.whole and not (chains and trimmed.trimming.padded)):
        return compare_weights(file, plain, beyond=beyond)
    # With other numbers of channels, chains are known by their kernels.
    mine = compare_weights(file, trimmed.removal.model, beyond=in_chains(chains, channels=False) if chains else None)
    if mine.edge.status is Status.FAIL:
        return mine
    fault = alive(trimmed.whole, trimmed.removal, example) if trimmed.removal.model is not trimmed.whole else None
    if fault is not None:
        return WeightsFound(edge=fault, layers=mine.layers)
    found = compare_weights(trimmed.whole, plain, beyond=beyond)
    if found.edge.status is Status.FAIL or trimmed.removal.model is trimmed.whole:
        return found
    number = trimmed.trimming.channels
    reason = f"{found.edge.reason}; {count(number, 'channel')} removed, each dead by its weights"
    return WeightsFound(edge=replace(found.edge, reason=reason), layers=found.layers)


def alive(whole: ir.Model, removal: Removal, example: Mapping[str, Array] | None = None) -> EdgeResult | None:
    """Return the weights edge as a failure, where something was removed that is not dead; None where all is.

    Args:
        whole: The graph before.
        removal: What is said of it.
        example: As for ``compare_trimmed``.
    """
    before, after = with_computed(whole), with_computed(removal.model)
    wrong: Wrong | None
    try:
        wrong = ChannelProof(before, after, removal, _values(before, example)).fault()
    except (ReferenceUnavailable, ExampleInputError) as error:
        reason = f"whether the removed channels were dead is not known: {error}"
        wrong = Wrong(layer="", what=reason, is_known=False)
    if wrong is None:
        return None
    status = Status.FAIL if wrong.is_known else Status.INCONCLUSIVE
    return EdgeResult(edge="weights", status=status, first_divergence=wrong.layer or None, reason=wrong.what)


def _values(model: ir.Model, example: Mapping[str, Array] | None) -> dict[str, Array]:
    """The values of a graph on some inputs: floats, of which only the shape matters, take no memory."""
    ports = input_ports(model)
    first: ReferenceUnavailable | None = None
    with scratch_folder() as folder:
        reference = _reference(model, folder)
        for _, sizes in guesses(ports, example):
            values: dict[str, Array] = {}

            def see(name: str, value: Array, values: dict[str, Array] = values) -> None:
                values[name] = np.broadcast_to(np.float64(0), value.shape) if value.dtype.kind == "f" else value

            inputs = next(file_cases(ports, sizes, example, seed=0)).inputs
            try:
                reference.run(inputs, watch=see)
            except ReferenceUnavailable as error:
                first = first or error
                continue
            for name, value in inputs.items():
                see(name, value)
            return values
    assert first is not None, "some size was tried"
    raise first


def _reference(model: ir.Model, folder: Path) -> OnnxReference:
    """The reference of a model in memory; one that a protobuf cannot hold goes by a file."""
    stored = sum(t.nbytes for v in model.graph.initializers.values() if (t := v.const_value) is not None)
    if stored < GIB:
        return OnnxReference(ir.to_proto(model))
    path = folder / "whole.onnx"
    with writing_scratch(path):
        ir.save(model, path, external_data="whole.data", size_threshold_bytes=INLINE_UP_TO)
    return OnnxReference(reload_proto(path), folder)

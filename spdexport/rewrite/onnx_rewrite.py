"""The ONNX side of the rewrite, second half: put forms in the places of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spdexport.errors import UsageError
from spdexport.rewrite.dense_pass import NOTHING_READ
from spdexport.rewrite.onnx_builder import OnnxLayerNodes, OnnxNodes
from spdexport.rewrite.onnx_edit import OnnxEdit
from spdexport.rewrite.placing import place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import onnx_ir as ir

    from spdexport.conv import ConvSite
    from spdexport.forms import Form
    from spdexport.rewrite.dense_pass import GateReads

LIVE_OPSET = 13
"""The opset from which masks that are known only at run time are placed: axes are operands there."""


def place_onnx_forms(
    model: ir.Model,
    forms: Iterable[tuple[ConvSite, Form]],
    *,
    sizes: Mapping[str, tuple[Any, ...]] | None = None,
    reads: GateReads = NOTHING_READ,
) -> ir.Model:
    """Return a new model in which each site has taken its form; the argument is not changed.

    Initializers are named after the layer: ``<layer>.V``, ``<layer>.U``, ``<layer>.mask``, ``<layer>.delta``. All else
    is what it was, and shared with the argument rather than copied. Weights that nothing uses any more are removed.

    Args:
        model: The model, whose sites `list_onnx_sites` listed.
        forms: Sites, each with the form it takes; stage weights in the site's dtype. Taken one at a time.
        sizes: Those of values by name, which masks that are known only at run time need: numbers, symbols, or None.
        reads: What exact gates read of the dense model.

    Raises:
        UsageError: An input or a dense pass that a variable mask needs cannot be made, or sizes are not known.
        MaskError: A mask for each location does not fit the layer's output.
    """
    model = model.clone()
    opset = model.opset_imports.get("", 1)
    if sizes is not None and opset < LIVE_OPSET:
        raise UsageError(
            f"The source is of opset {opset}, and masks at run time are placed from opset {LIVE_OPSET} on.",
            where="--runtime-masks, --gates, --activation-outputs or --masks",
            hint="Give --opset 18 with it.",
        )
    edit = OnnxEdit(model, sizes or {})

    def in_front_of(node: ir.Node, prefix: str, dtype: np.dtype[Any]) -> OnnxNodes:
        return OnnxNodes(edit, node, prefix, dtype)

    def nodes_of(site: ConvSite, form: Form) -> OnnxLayerNodes:
        return OnnxLayerNodes(edit, site, keeps_original=form.routing is not None)

    place(edit, forms, nodes_of, in_front_of, reads)
    edit.finish()
    return model

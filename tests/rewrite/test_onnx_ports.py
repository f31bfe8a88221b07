"""The inputs that a model has beside its own: two Unsqueeze nodes as one, and the symbols of defaults."""

from __future__ import annotations

import onnx_ir as ir
from onnx_models import unsqueezes

from spdexport.forms import LiveInput, Role
from spdexport.rewrite.onnx_ports import name_inputs


def test_a_default_has_a_batch_symbol_of_its_own_as_far_as_it_goes() -> None:
    wanted = LiveInput(role=Role.MASK, layer="a", per_location=False, channels=3)
    for required in (False, True):
        model = unsqueezes(["batch", 3], [-1], [-1])
        name_inputs(model, [wanted], required=required)
        proto = ir.to_proto(model)
        (mask,) = proto.graph.input
        symbol = "batch" if required else "batch_or_1_mask_a"
        assert (mask.name, mask.type.tensor_type.shape.dim[0].dim_param) == ("mask/a", symbol)
        defaults = {t.name: list(t.dims) for t in proto.graph.initializer}
        assert defaults.get("mask/a") == (None if required else [1, 3])

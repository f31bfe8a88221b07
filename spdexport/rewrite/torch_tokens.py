"""Matrix products over flattened tokens as the linear layers that they are.

Hugging Face's ``Conv1D`` reshapes (batch, tokens, in) to rows, adds a product to its bias, and reshapes back. A mask
for each sample, the importances of each token and a function that sees all tokens need the axes that are lost in
between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from spdexport.rewrite.constants import Constants
from spdexport.rewrite.torch_edit import ProgramEdit
from spdexport.rewrite.torch_graph import PRODUCTS, arguments, operands

if TYPE_CHECKING:
    from torch.export import ExportedProgram

aten = torch.ops.aten

_RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def over_tokens(program: ExportedProgram) -> ExportedProgram:
    """Return a program in which such products are linear layers over tokens; the same program where there are none.

    Only a reshape of all axes but the last to rows is undone, whose product alone is reshaped back to the same axes.
    """
    constants = Constants(program)
    found = [node for node in program.graph.nodes if _is_over_tokens(node, constants)]
    if not found:
        return program
    edit = ProgramEdit(program)
    for old in found:
        product = edit.node(old.name)
        data, weight, bias = operands(product)
        (back,) = product.users
        with edit.graph.inserting_before(back):
            turned = edit.call(aten.t.default, (weight,), product, "turned")
            linear = edit.call(aten.linear.default, (data.args[0], turned, bias), product, "linear")
        # The layer's output keeps the name that it has behind the reshape, and the metadata of the module.
        back.target, back.args, back.kwargs = linear.target, linear.args, {}
        back.meta = {**product.meta, "val": back.meta["val"]}
        edit.graph.erase_node(linear)
        edit.graph.erase_node(product)
        edit.drop_unused(data)
    return edit.finish()


def _is_over_tokens(node: torch.fx.Node, constants: Constants) -> bool:
    if node.target not in PRODUCTS or not constants.is_constant(operands(node).weight):
        return False
    args, (data, _, bias) = arguments(node), operands(node)
    if args.get("alpha", 1) != 1 or args.get("beta", 1) != 1 or (bias is not None and bias.meta["val"].ndim != 1):
        return False
    users = list(node.users)
    reshapes = isinstance(data, torch.fx.Node) and data.target in _RESHAPES and len(users) == 1
    if not reshapes or users[0].target not in _RESHAPES or users[0].args[0] is not node:
        return False
    before, rows, after = data.args[0].meta["val"].shape, data.meta["val"].shape, users[0].meta["val"].shape
    return (
        len(rows) == 2
        and len(before) == len(after) > 2
        and _same(before[-1:], rows[-1:])
        and _same(before[:-1], after[:-1])
    )


def _same(one: Any, other: Any) -> bool:
    # As text, for comparing symbols with numbers would leave a guard.
    return [str(size) for size in one] == [str(size) for size in other]

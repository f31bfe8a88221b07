"""Put forms in the places of convolutions: a new ExportedProgram from an old one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spdexport.rewrite.dense_pass import NOTHING_READ
from spdexport.rewrite.placing import place
from spdexport.rewrite.torch_builder import TorchLayerNodes, TorchNodes
from spdexport.rewrite.torch_edit import ProgramEdit

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import torch
    from torch.export import ExportedProgram

    from spdexport.conv import ConvSite
    from spdexport.forms import Form
    from spdexport.rewrite.dense_pass import GateReads


def place_forms(
    program: ExportedProgram,
    forms: Iterable[tuple[ConvSite, Form]],
    *,
    reads: GateReads = NOTHING_READ,
) -> ExportedProgram:
    """Return a new program in which each site has taken its form; the argument is not changed.

    Parameters are named after the layer: ``<layer>.V``, ``<layer>.U``, ``<layer>.mask``, ``<layer>.delta``. Tensors of
    untouched layers are shared with the argument, not copied. Forms are taken one at a time, so an iterator that makes
    them as it goes keeps one layer's arrays in memory beside the program's.

    Args:
        program: The traced program.
        forms: Sites of this very program, each with the form it takes; stage weights in the site's dtype.
        reads: What exact gates read of the dense model.

    Raises:
        UsageError: An input or a dense pass that a variable mask needs cannot be made.
        MaskError: A mask for each location does not fit the layer's output.
    """
    edit = ProgramEdit(program)

    def in_front_of(node: torch.fx.Node, prefix: str, dtype: np.dtype[Any]) -> TorchNodes:
        return TorchNodes(edit, node, prefix, dtype, node)

    def nodes_of(site: ConvSite, _: Form) -> TorchLayerNodes:
        return TorchLayerNodes(edit, site)

    place(edit, forms, nodes_of, in_front_of, reads)
    return edit.finish()

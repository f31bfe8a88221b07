"""One export of a traced program for all the files of it: forms take their places in the graph that it gives."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from spdexport.export import finish, translate
from spdexport.rewrite.exported_sites import can_be_placed, in_lowered, in_onnx, match_exported
from spdexport.rewrite.onnx_rewrite import place_onnx_forms
from spdexport.rewrite.torch_place import place_forms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from torch.export import ExportedProgram

    from spdexport.conv import ConvSite
    from spdexport.export import Exported
    from spdexport.forms import Form
    from spdexport.rewrite.exported_sites import Place


class DenseExport:
    """What the exporter makes of a traced program, before it is optimized; its layers take forms there.

    The exporter folds batch norm into weights when it optimizes, so that is done on each graph that has its forms.

    Args:
        program: The traced program.
        opset: As for ``export_onnx``.
        axes: As for ``export_onnx``.
    """

    def __init__(self, program: ExportedProgram, *, opset: int | None, axes: Mapping[str, Mapping[int, str]]) -> None:
        self._program, self._opset, self._axes = program, opset, axes

    def takes(self, forms: Sequence[tuple[ConvSite, Form]]) -> bool:
        """Return whether the graph can take these forms: where there are none it is only optimized.

        Raises:
            ExportError: An operator has no ONNX form, or the exporter gives another opset than asked for.
        """
        return not forms or (self._places is not None and can_be_placed(forms, self._places))

    def model(self, forms: Sequence[tuple[ConvSite, Form]]) -> ir.Model:
        """Make the ONNX model with forms that it ``takes``; weights are shared with the program and the forms."""
        placed = place_onnx_forms(self._translated.model, in_onnx(forms, self._places or {}))
        return finish(placed, self._program, axes=self._axes)

    def lowered(self, forms: Sequence[tuple[ConvSite, Form]]) -> ExportedProgram:
        """Make the program with the same forms whose nodes have the names of that model's values."""
        return place_forms(self._translated.lowered, in_lowered(forms, self._places or {}))

    @cached_property
    def _translated(self) -> Exported:
        return translate(self._program, opset=self._opset)

    @cached_property
    def _places(self) -> Mapping[str, Place] | None:
        return match_exported(self._program, self._translated.lowered, self._translated.model)

"""Whether a file may be run by ONNX Runtime, which knows no limits: a loop without end would never come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.errors import SourceError
from spdexport.files.onnx_reading import reload_proto
from spdexport.files.onnx_sizes import Sizes
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.unavailable import ReferenceUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx

    from spdexport.conv import Array


class Bounded:
    """The bounds of what one file does with its inputs.

    Most files tell by their sizes alone what they need. The others, which loop or make values as large as other values
    say, are evaluated in float64 first, where the limits hold.

    Args:
        file: The ONNX file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._model: onnx.ModelProto | None = None
        self._reference: OnnxReference | None = None
        self._known: dict[tuple[tuple[str, tuple[int, ...]], ...], bool] = {}

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Check that the file stays within the limits on some inputs.

        Raises:
            SourceError: It does not; the error says what is beyond which limit.
        """
        if self._model is None:
            self._model = reload_proto(self._file)
        shapes = tuple((name, array.shape) for name, array in inputs.items())
        if shapes not in self._known:
            self._known[shapes] = Sizes(self._model, str(self._file), dict(shapes)).are_all_known
        if self._known[shapes]:
            return
        try:
            if self._reference is None:
                self._reference = OnnxReference(self._model, self._file.parent)
            self._reference.run(inputs)
        except ReferenceUnavailable as error:
            # What the reference cannot compute for other reasons is no reason against running it.
            if error.is_beyond:
                what = f"The file was not run: {error}."
                raise SourceError(what, where=str(self._file), hint="Raise the limit if you trust the file.") from error

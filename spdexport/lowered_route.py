"""A route whose file stores its numbers in fewer bits, as its last step: around either of the two routes."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from spdexport.content import content_hash
from spdexport.errors import ExportError, UsageError
from spdexport.model_files import write_metadata
from spdexport.precision import Unstorable, lowered

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir
    import torch
    from torch.export import ExportedProgram

    from spdexport.loading.model import ExampleInputs
    from spdexport.precision import Precision
    from spdexport.rewrite.onnx_trim import Trimming
    from spdexport.route import PreparedSource, Route
    from spdexport.verification.check import Check
    from spdexport.verification.result import Verification


class LoweredRoute:
    """Another route, and a last step behind it.

    Args:
        inner: The route to the float model.
        precision: How numbers are stored.
    """

    def __init__(self, inner: Route, precision: Precision) -> None:
        self._inner, self._precision = inner, precision

    @property
    def prepared(self) -> PreparedSource:
        """What was read and decided."""
        return self._inner.prepared

    @property
    def external_from(self) -> int | None:
        """As the float model has it."""
        return self._inner.external_from

    @property
    def trimming(self) -> Trimming | None:
        """What was removed from the float model and padded in it."""
        return self._inner.trimming

    @property
    def precision(self) -> Precision:
        """How numbers are stored."""
        return self._precision

    def program(self) -> ExportedProgram:
        """Refuse: there is none."""
        raise self._no_program()

    def trainable(self) -> torch.nn.Module:
        """Refuse: there is none."""
        raise self._no_program()

    def dense(self) -> ir.Model:
        """Return the source's own graph."""
        return self._inner.dense()

    def subject_inputs(self) -> tuple[ExampleInputs | None, bool]:
        """Return the inputs of the float model's check."""
        return self._inner.subject_inputs()

    def model(self) -> ir.Model:
        """Return the model in fewer bits, with metadata.

        Raises:
            ExportError: The float model cannot be stored so.
        """
        try:
            model = lowered(self._plain, self._precision)
        except Unstorable as error:
            raise ExportError(
                f"The model cannot be stored as {self._precision.storage}: {error}.",
                where="the last step of the conversion",
                hint="Leave that step out, or make a plan of this model.",
            ) from error
        write_metadata(model, {"content": content_hash(model), "precision": self._precision.as_json()})
        return model

    def verify(self, file: Path | None, name: str, check: Check, *, folded: bool = False) -> Verification:
        """Check a file against the float model, and that against the source; see ``Route``."""
        from spdexport.verification.lowered_file import LoweredSubject, verify_lowered

        assert file is not None, "what has fewer bits is an ONNX file"
        inputs, own_inputs = self._inner.subject_inputs()
        subject = LoweredSubject(
            file=file,
            name=name,
            plain=self._plain,
            precision=self._precision,
            dense=self._inner.dense(),
            verify_plain=lambda plain, how: self._inner.verify(plain, name, how, folded=folded),
            inputs=inputs,
            own_inputs=own_inputs,
        )
        return verify_lowered(subject, check)

    @cached_property
    def _plain(self) -> ir.Model:
        return self._inner.model()

    def _no_program(self) -> UsageError:
        return UsageError(
            f"No torch program stores numbers as {self._precision.storage}.",
            where="the outputs",
            hint="Write an ONNX file.",
        )

"""What every way from a source to a file that is checked can do; ``routes.py`` has the ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir
    import torch
    from torch.export import ExportedProgram

    from spdexport.loading.model import ExampleInputs
    from spdexport.planning import Plan
    from spdexport.precision import Precision
    from spdexport.ranges import Ranges
    from spdexport.rewrite.onnx_trim import Trimming
    from spdexport.verification.check import Check
    from spdexport.verification.result import Verification


class PreparedSource(Protocol):
    """What both kinds of prepared sources tell."""

    @property
    def plan(self) -> Plan: ...  # noqa: D102
    @property
    def components(self) -> str: ...  # noqa: D102
    @property
    def hashes(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def notes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def ranges(self) -> Ranges: ...  # noqa: D102


class Route(Protocol):
    """A source that was read and decided about, on its way to a file."""

    @property
    def prepared(self) -> PreparedSource:
        """What was read and decided."""

    @property
    def external_from(self) -> int | None:
        """As ``write_onnx`` has it: from how many bytes on weights go to a file of their own."""

    @property
    def precision(self) -> Precision | None:
        """How the file's numbers are stored; None for as the source has them."""

    def program(self) -> ExportedProgram:
        """Return the factorized program of torch."""

    def trainable(self) -> torch.nn.Module:
        """Return the same as a module to be trained."""

    def model(self) -> ir.Model:
        """Return the factorized ONNX model, with metadata."""

    def dense(self) -> ir.Model:
        """Return the ONNX graph of the source itself."""

    def subject_inputs(self) -> tuple[ExampleInputs | None, bool]:
        """Return the example inputs that a file is checked on, and whether their values are the user's own."""

    @property
    def trimming(self) -> Trimming | None:
        """What was removed from ``model`` and padded in it; None where the plan does not ask for that."""

    def verify(
        self,
        file: Path | None,
        name: str,
        check: Check,
        *,
        folded: bool = False,
    ) -> Verification:
        """Check a file against the source; None for the factorized program alone.

        Args:
            file: The file.
            name: The name that it has or is to have.
            check: How.
            folded: Whether the file is one whose layers were folded after the conversion.
        """

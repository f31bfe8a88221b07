"""The two ways from a source to an ONNX file that is checked: through a traced program, or within the ONNX graph."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from spdexport.errors import UsageError
from spdexport.files.sniff import FileKind, sniff
from spdexport.lowered_route import LoweredRoute
from spdexport.ort.installed import require_torch
from spdexport.route_metadata import write_route_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir
    import torch
    from torch.export import ExportedProgram

    from spdexport.conv import ConvSite
    from spdexport.dense_export import DenseExport
    from spdexport.export import Exported
    from spdexport.forms import Form
    from spdexport.loading.model import ExampleInputs
    from spdexport.loading.source import Source
    from spdexport.onnx_prepare import PreparedOnnx
    from spdexport.options import Options
    from spdexport.planning import Plan
    from spdexport.precision import Precision
    from spdexport.prepare import Prepared
    from spdexport.rewrite.onnx_trim import Trimmed, Trimming
    from spdexport.route import Route
    from spdexport.verification.check import Check
    from spdexport.verification.masked_models import MaskedProgram
    from spdexport.verification.result import Verification
    from spdexport.verification.torch_source import Subject


def is_onnx(source: Source) -> bool:
    """Return whether a source is an ONNX file, by its content."""
    return isinstance(source, str | Path) and sniff(source) is FileKind.ONNX


def find_route(
    source: Source,
    options: Options,
    progress: Callable[[str], None],
    *,
    shapes: Sequence[str] = (),
    precision: Precision | None = None,
) -> Route:
    """Read a source of either kind and decide about its layers.

    Args:
        source: The source.
        options: How; a plan among them may tell a precision.
        progress: Told what is being done.
        shapes: As ``prepare`` has them.
        precision: How the file's numbers are stored; None for what the plan says, or else as the source has them.

    Raises:
        UsageError, InputError, CaptureError: As ``prepare`` and ``prepare_onnx`` do.
    """
    route = _plain_route(source, options, progress, shapes)
    if precision is None and options.plan is not None:
        precision = options.plan.precision
    return route if precision is None else LoweredRoute(route, precision)


def _plain_route(source: Source, options: Options, progress: Callable[[str], None], shapes: Sequence[str]) -> Route:
    if is_onnx(source):
        from spdexport.onnx_prepare import prepare_onnx

        return OnnxRoute(prepare_onnx(Path(str(source)), options, progress), options)
    require_torch()
    from spdexport.prepare import prepare

    return TorchRoute(prepare(source, options, progress, shapes=shapes), options)


def no_program(source: Source, where: str) -> UsageError:
    """Return what there is to say of a torch program that is asked for where the source has none."""
    return UsageError(
        f"{Path(str(source)).name} is an ONNX file, of which no torch program can be made.",
        where=where,
        hint="Write an ONNX file, or give the torch model as the source.",
    )


def _trimmed(model: ir.Model, plan: Plan) -> Trimmed | None:
    """The model as it is deployed; None where the plan wants it as it is."""
    if not plan.trims:
        return None
    from spdexport.rewrite.onnx_trim import trim

    return trim(model, lane=plan.options.padding, chains=plan.chains)


def _told(trimmed: Trimmed | None) -> Trimming | None:
    return None if trimmed is None else trimmed.trimming


class TorchRoute:
    """Through a traced program and torch's exporter."""

    external_from = None
    precision = None

    def __init__(self, prepared: Prepared, options: Options) -> None:
        self.prepared = prepared
        self._options = options

    def program(self) -> ExportedProgram:
        """Return the factorized program of torch."""
        return self._intended

    def trainable(self) -> torch.nn.Module:
        """Return the same as a module to be trained, whose stages are named as files of chains name them."""
        from spdexport.rewrite.torch_trainable import numbered, trainable_module

        return trainable_module(self.prepared.factorized(numbered(self._forms)))

    def model(self) -> ir.Model:
        """Return the factorized ONNX model, with metadata."""
        model = self._exported if self._trimmed is None else self._trimmed.model
        write_route_metadata(model, self.prepared, self._options, self.trimming, "torch")
        return model

    def dense(self) -> ir.Model:
        """Return the plain export of the source."""
        return self._dense.model(())

    def subject_inputs(self) -> tuple[ExampleInputs | None, bool]:
        """Return those that the model was traced with."""
        return self.prepared.captured.inputs, self.prepared.own_inputs

    @property
    def trimming(self) -> Trimming | None:
        """What was removed from the model and padded in it."""
        return _told(self._trimmed)

    def verify(self, file: Path | None, name: str, check: Check, *, folded: bool = False) -> Verification:
        """Check a file against the module and the program; see ``Route``."""
        from spdexport.verification.torch_source import verify_subject

        return verify_subject(self.subject(file, name, folded=folded), check)

    def subject(self, file: Path | None, name: str, *, folded: bool = False) -> Subject:
        """Give everything that takes part in the verification of a file; the arguments are those of ``verify``."""
        from spdexport.verification.torch_source import Subject

        prepared, masked, trimmed = self.prepared, self._masked(), self._trimmed
        unfolded = folded and trimmed is None
        return Subject(
            file=file,
            name=name,
            module=prepared.loaded.module,
            program=prepared.captured.program,
            effective=self._effective,
            intended=self._intended,
            lowered=self._lowered,
            # What was folded from V and U has their rounding, which the same V and U bring into the comparison.
            plain=lambda: self._exported if unfolded or masked is not None else self._plain,
            trimmed=trimmed,
            plan=prepared.plan,
            example=prepared.captured.inputs,
            own_inputs=prepared.own_inputs,
            masked=masked,
        )

    def _masked(self) -> MaskedProgram | None:
        """What is known only at run time, as it is verified; None where nothing is."""
        from spdexport.verification.masked_models import MaskedProgram

        plan = self.prepared.plan
        if not any(d.run_time is not None for d in plan.decisions):
            return None
        return MaskedProgram(
            dense=self.prepared.captured.program,
            effective=self._effective,
            intended=self._intended,
            plan=plan,
            required=self._options.requires_masks,
        )

    @cached_property
    def _forms(self) -> tuple[tuple[ConvSite, Form], ...]:
        """The forms that the layers take, which the program and the graph share."""
        return tuple(self.prepared.plan.forms())

    @cached_property
    def _effective_forms(self) -> tuple[tuple[ConvSite, Form], ...]:
        return tuple(self.prepared.plan.dense_forms())

    @cached_property
    def _intended(self) -> ExportedProgram:
        return self.prepared.factorized(self._forms)

    @cached_property
    def _effective(self) -> ExportedProgram:
        return self.prepared.effective(self._effective_forms)

    @cached_property
    def _dense(self) -> DenseExport:
        from spdexport.dense_export import DenseExport

        captured = self.prepared.captured
        return DenseExport(captured.program, opset=self._options.opset, axes=captured.axes)

    @cached_property
    def _is_placed(self) -> bool:
        """Whether the ONNX graph of the dense model takes the forms; else the program is exported that has them."""
        masked = any(d.run_time is not None for d in self.prepared.plan.decisions)
        return not masked and self._dense.takes((*self._forms, *self._effective_forms))

    @cached_property
    def _exported(self) -> ir.Model:
        from spdexport.rewrite.onnx_ports import name_inputs

        model = self._dense.model(self._forms) if self._is_placed else self._apart.model
        name_inputs(model, self.prepared.plan.runtime_inputs, required=self._options.requires_masks)
        return model

    @cached_property
    def _trimmed(self) -> Trimmed | None:
        return _trimmed(self._exported, self.prepared.plan)

    def _lowered(self) -> ExportedProgram:
        return self._dense.lowered(self._forms) if self._is_placed else self._apart.lowered

    @cached_property
    def _plain(self) -> ir.Model:
        if self._is_placed or not self._effective_forms:
            return self._dense.model(self._effective_forms)
        return self._export(self._effective).model

    @cached_property
    def _apart(self) -> Exported:
        """The export of the factorized program itself."""
        return self._export(self._intended, self.prepared.plan.runtime_outputs)

    def _export(self, program: ExportedProgram, outputs: Sequence[str] = ()) -> Exported:
        from spdexport.export import export_onnx

        axes = self.prepared.captured.axes
        return export_onnx(program, opset=self._options.opset, axes=axes, outputs=outputs)


class OnnxRoute:
    """Within the graph of an ONNX file."""

    precision = None

    def __init__(self, prepared: PreparedOnnx, options: Options) -> None:
        self.prepared = prepared
        self._options = options

    @property
    def external_from(self) -> int | None:
        """A source that keeps its weights beside it gives a file that does, whatever their size."""
        return 0 if self.prepared.is_external else None

    def program(self) -> ExportedProgram:
        """Refuse: there is none."""
        raise no_program(self.prepared.path, "the source")

    def trainable(self) -> torch.nn.Module:
        """Refuse: there is none."""
        raise no_program(self.prepared.path, "the source")

    def model(self) -> ir.Model:
        """Return the factorized model, with metadata."""
        model = self._whole if self._trimmed is None else self._trimmed.model
        write_route_metadata(model, self.prepared, self._options, self.trimming, "onnx")
        return model

    def dense(self) -> ir.Model:
        """Return the source's graph, as it was read."""
        return self.prepared.model

    def subject_inputs(self) -> tuple[ExampleInputs | None, bool]:
        """Return the user's."""
        return self.prepared.inputs, self._options.own_inputs

    @property
    def trimming(self) -> Trimming | None:
        """What was removed from the model and padded in it."""
        return _told(self._trimmed)

    @cached_property
    def _whole(self) -> ir.Model:
        return self.prepared.factorized()

    @cached_property
    def _trimmed(self) -> Trimmed | None:
        return _trimmed(self._whole, self.prepared.plan)

    def verify(self, file: Path | None, name: str, check: Check, *, folded: bool = False) -> Verification:
        """Check a file against the source file; see ``Route``."""
        from spdexport.verification.onnx_source import FileSubject, verify_against_file

        prepared, options = self.prepared, self._options
        assert file is not None, "an ONNX source gives an ONNX file"
        effective, trimmed = prepared.effective(), self._trimmed
        is_masked = prepared.sizes is not None
        subject = FileSubject(
            file=file,
            name=name,
            source=prepared.path,
            own=None if prepared.as_written else prepared.model,
            effective=None if effective is prepared.model else effective,
            intended=prepared.factorized(),
            plain=prepared.factorized if (folded and trimmed is None) or is_masked else prepared.plain,
            trimmed=trimmed,
            plan=prepared.plan,
            inputs=prepared.inputs,
            own_inputs=options.own_inputs,
            sizes=prepared.sizes,
            requires_masks=prepared.requires_masks,
        )
        return verify_against_file(subject, check)

"""Converted files with all that verification of them needs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from spdexport.export import export_onnx
from spdexport.files.atomic import pending
from spdexport.model_files import write_onnx
from spdexport.options import Options
from spdexport.prepare import prepare
from spdexport.verification.run import Subject

DIGITS = Path(__file__).parents[2] / "examples" / "01_digits"


def make_subject(folder: Path, source: Any, options: dict[str, Any]) -> Subject:
    """A converted file with all that verification of it needs, exported once."""
    chosen = Options.of(options)  # type: ignore[arg-type]
    prepared = prepare(source, chosen)
    intended = prepared.factorized()
    exported = export_onnx(intended, axes=prepared.captured.axes)
    file = folder / "model.onnx"
    with pending(file) as output:
        write_onnx(exported.model, output)
    effective = prepared.effective()
    return Subject(
        file=file,
        name=file.name,
        module=prepared.loaded.module,
        program=prepared.captured.program,
        effective=effective,
        intended=intended,
        lowered=lambda: exported.lowered,
        plain=cache(lambda: export_onnx(effective, axes=prepared.captured.axes).model),
        plan=prepared.plan,
        example=prepared.captured.inputs,
        own_inputs=not chosen.input_shape,
    )

"""Converted files with all that verification of them needs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdexport import pipeline
from spdexport.export import export_onnx
from spdexport.model_files import write_onnx
from spdexport.options import Options
from spdexport.prepare import prepare

if TYPE_CHECKING:
    from spdexport.verification.run import Subject

DIGITS = Path(__file__).parents[2] / "examples" / "01_digits"


def make_subject(folder: Path, source: Any, options: dict[str, Any]) -> Subject:
    """A converted file with all that verification of it needs, exported once."""
    chosen = Options.of(options)  # type: ignore[arg-type]
    prepared = prepare(source, chosen)
    intended = prepared.factorized()
    exported = export_onnx(intended, axes=prepared.captured.axes)
    file = folder / "model.onnx"
    write_onnx(exported.model, file, file)
    subject = pipeline._subject(file, file.name, prepared, intended, chosen, lambda: exported)
    return replace(subject, plain=cache(subject.plain))

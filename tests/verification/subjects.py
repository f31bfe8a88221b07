"""Converted files with all that verification of them needs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from spdexport.files.atomic import pending
from spdexport.model_files import write_onnx
from spdexport.options import Options
from spdexport.prepare import prepare
from spdexport.routes import TorchRoute
from spdexport.verification.torch_source import Subject

DIGITS = Path(__file__).parents[2] / "examples" / "01_digits"


def make_subject(folder: Path, source: Any, options: dict[str, Any]) -> Subject:
    """A converted file with all that verification of it needs, made as ``convert`` makes it."""
    chosen = Options.of(options)  # type: ignore[arg-type]
    route = TorchRoute(prepare(source, chosen), chosen)
    file = folder / "model.onnx"
    with pending(file) as output:
        write_onnx(route.model(), output)
    subject = route.subject(file, file.name)
    return replace(subject, plain=cache(subject.plain), lowered=cache(subject.lowered))

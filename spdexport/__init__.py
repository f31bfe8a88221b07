"""Export models with SPD components to ONNX, and prove that ONNX Runtime computes what was meant.

The public names, nothing else. They load on first use, so that ``import spdexport`` and ``spdexport --help`` answer
without torch (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spdexport.ablation.ablate import Ablations, ablate
    from spdexport.atlases.result import Atlas
    from spdexport.compression.compress import compress
    from spdexport.compression.result import Compression
    from spdexport.conv import ConvSpec
    from spdexport.drawing import atlas
    from spdexport.errors import (
        CaptureError,
        ComponentsError,
        ExampleInputError,
        ExportError,
        IncompleteError,
        InputError,
        MaskError,
        ModelError,
        OutputError,
        PickleRefusedError,
        PlanError,
        RuntimeMissingError,
        SourceError,
        SpdExportError,
        UsageError,
    )
    from spdexport.factors import Factors
    from spdexport.files.limits import reading_limits
    from spdexport.folding import Folding, fold
    from spdexport.importance.derive import derive_masks
    from spdexport.importance.result import DerivedMasks
    from spdexport.lab_folder import lab
    from spdexport.laboratory.result import Lab
    from spdexport.measuring.bench import Bench, bench
    from spdexport.options import Options, OptionsDict
    from spdexport.pipeline import Conversion, Inspection, convert, factorize, inspect, verify
    from spdexport.planning import LayerPlan, Plan
    from spdexport.sources.components import ComponentSet
    from spdexport.sources.spd import load_components
    from spdexport.verification.result import EdgeResult, Status, Verification

__version__ = "0.1.0"

__all__ = [
    "Ablations",
    "Atlas",
    "Bench",
    "CaptureError",
    "ComponentSet",
    "ComponentsError",
    "Compression",
    "ConvSpec",
    "Conversion",
    "DerivedMasks",
    "EdgeResult",
    "ExampleInputError",
    "ExportError",
    "Factors",
    "Folding",
    "IncompleteError",
    "InputError",
    "Inspection",
    "Lab",
    "LayerPlan",
    "MaskError",
    "ModelError",
    "Options",
    "OptionsDict",
    "OutputError",
    "PickleRefusedError",
    "Plan",
    "PlanError",
    "RuntimeMissingError",
    "SourceError",
    "SpdExportError",
    "Status",
    "UsageError",
    "Verification",
    "__version__",
    "ablate",
    "atlas",
    "bench",
    "compress",
    "convert",
    "derive_masks",
    "factorize",
    "fold",
    "inspect",
    "lab",
    "load_components",
    "reading_limits",
    "verify",
]

_HOME = {
    "Ablations": "ablation.ablate",
    "Atlas": "atlases.result",
    "Bench": "measuring.bench",
    "CaptureError": "errors",
    "ComponentSet": "sources.components",
    "ComponentsError": "errors",
    "Compression": "compression.result",
    "ConvSpec": "conv",
    "Conversion": "pipeline",
    "DerivedMasks": "importance.result",
    "EdgeResult": "verification.result",
    "ExampleInputError": "errors",
    "ExportError": "errors",
    "Factors": "factors",
    "Folding": "folding",
    "IncompleteError": "errors",
    "InputError": "errors",
    "Inspection": "pipeline",
    "Lab": "laboratory.result",
    "LayerPlan": "planning",
    "MaskError": "errors",
    "ModelError": "errors",
    "Options": "options",
    "OptionsDict": "options",
    "OutputError": "errors",
    "PickleRefusedError": "errors",
    "Plan": "planning",
    "PlanError": "errors",
    "RuntimeMissingError": "errors",
    "SourceError": "errors",
    "SpdExportError": "errors",
    "Status": "verification.result",
    "UsageError": "errors",
    "Verification": "verification.result",
    "ablate": "ablation.ablate",
    "atlas": "drawing",
    "bench": "measuring.bench",
    "compress": "compression.compress",
    "convert": "pipeline",
    "derive_masks": "importance.derive",
    "factorize": "pipeline",
    "fold": "folding",
    "inspect": "pipeline",
    "lab": "lab_folder",
    "load_components": "sources.spd",
    "reading_limits": "files.limits",
    "verify": "pipeline",
}
"""The module that each public name is imported from when it is first used."""


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

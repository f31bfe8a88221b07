"""What all reports take: the result of a command, and the verification in it."""

from __future__ import annotations

from typing import TypeAlias

from spdexport.ablation.ablate import Ablations
from spdexport.atlases.result import Atlas
from spdexport.folding import Folding
from spdexport.importance.result import DerivedMasks
from spdexport.laboratory.result import Lab
from spdexport.measuring.bench import Bench
from spdexport.pipeline import Conversion, Inspection
from spdexport.verification.result import Verification

Result: TypeAlias = Conversion | Inspection | Folding | Verification | Bench | DerivedMasks | Ablations | Atlas | Lab
"""What the commands give."""


def verification_of(result: Result) -> Verification | None:
    """Return the verification that a result is or holds; None where nothing was verified."""
    match result:
        case Verification():
            return result
        case Conversion() | Folding():
            return result.verification
    return None


def names_of(result: Result) -> str:
    """Return what a report is about: the names of the files that were compared or written, without folders."""
    names = list(result.artifacts) if isinstance(result, Verification) else []
    if isinstance(result, Conversion | Folding | DerivedMasks | Atlas):
        names = [path.name for path in result.outputs]
    if isinstance(result, Ablations | Lab):
        names = [result.file]
    if isinstance(result, Bench):
        names = [file.name for file in result.files]
    return ", ".join(names) or "the model"

"""The worst input as a file, so that a finding can be seen again: ``--repro FILE.npz``, then ``verify --inputs``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spdexport.files.atomic import replacing
from spdexport.files.npz import write_npz
from spdexport.files.writing import writing
from spdexport.loading.inputs import COMPUTED, EXPECTED

if TYPE_CHECKING:
    from pathlib import Path

    from spdexport.verification.result import WorstCase


def write_repro(worst: WorstCase, path: Path) -> None:
    """Save an input under its own names, what was computed as ``output:NAME``, and what is right as ``reference:NAME``.

    Whatever reads example inputs leaves those two prefixes out. The comment of the zip file tells edge and case.

    Args:
        worst: What verification found.
        path: The ``.npz`` file; an existing one is replaced only by a whole new one.

    Raises:
        UsageError: The folder does not exist.
        OutputError: The system does not let the file be written.
    """
    arrays = {
        **worst.inputs,
        **{f"{COMPUTED}{name}": value for name, value in worst.outputs.items()},
        **{f"{EXPECTED}{name}": value for name, value in worst.reference.items()},
    }
    about = {
        "edge": worst.edge,
        "provider": worst.provider,
        "case": worst.case,
        "status": worst.status.value,
        "noise_ratio": float(worst.noise_ratio) if np.isfinite(worst.noise_ratio) else None,
    }
    with replacing(path) as temporary, writing(path):
        write_npz(temporary, arrays, about)

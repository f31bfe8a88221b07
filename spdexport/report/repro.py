"""The worst input as a file, so that a finding can be seen again: ``--repro FILE.npz``, then ``verify --inputs``."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from spdexport.files.atomic import replacing
from spdexport.loading.inputs import COMPUTED, EXPECTED

if TYPE_CHECKING:
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.verification.result import WorstCase

_NEVER = (1980, 1, 1, 0, 0, 0)
"""The date of the entries, the earliest that a zip file can hold: the same finding gives the same bytes."""


def write_repro(worst: WorstCase, path: Path) -> None:
    """Save an input under its own names, what was computed as ``output:NAME``, and what is right as ``reference:NAME``.

    Whatever reads example inputs leaves those two prefixes out. The comment of the zip file tells edge and case.
    Dtypes that numpy itself does not have (bfloat16) are saved as float32, which holds all their values.

    Args:
        worst: What verification found.
        path: The ``.npz`` file; an existing one is replaced only by a whole new one.

    Raises:
        UsageError: The folder cannot be written to.
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
    # Not np.savez, which takes names as keyword arguments: an input called "file" would be its own parameter.
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, value in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", _NEVER)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, _of_numpy(value), allow_pickle=False)
        archive.comment = json.dumps(about, ensure_ascii=True).encode()


def _of_numpy(value: Array) -> Array:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "V" else array

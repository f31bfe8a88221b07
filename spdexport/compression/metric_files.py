"""A measure of the user's own: a Python function that says of each sample how good the answers are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spdexport.errors import SourceError
from spdexport.files.hashing import sha256_file
from spdexport.loading.factory import users_function
from spdexport.names import count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.conv import Array, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMetric:
    """The drop of the user's measure; see ``losses.Loss``.

    Attributes:
        spec: ``FILE.py:NAME`` or ``package.module:NAME``.
    """

    spec: str
    power: int = 1

    @property
    def title(self) -> str:
        """The function's name."""
        return f"drop of {self.spec.rpartition(':')[2]}"

    def of_batch(
        self, dense: Mapping[str, Array], compressed: Mapping[str, Array], labels: Array | None
    ) -> tuple[FloatArray, FloatArray]:
        """Return what each sample is worse by.

        Raises:
            SourceError: The function raises, or returns something else than a number for each sample.
        """
        number = len(next(iter(dense.values())))
        with users_function(self.spec, "metric") as measure:
            before, after = (
                np.asarray(measure(next(iter(answers.values())) if len(answers) == 1 else dict(answers), labels))
                for answers in (dense, compressed)
            )
        for values in (before, after):
            if values.shape != (number,) or values.dtype.kind not in "biuf" or not np.isfinite(values).all():
                raise SourceError(
                    f"The metric returned {values.dtype} of shape {values.shape} for {count(number, 'sample')}.",
                    where=f"--metric {self.spec}",
                    hint="Return one finite number for each sample, of which more is better.",
                )
        sizes = before.astype(np.float64) - after.astype(np.float64)
        return sizes, np.ones(number)


def metric_hash(spec: str) -> str:
    """Return what tells a measure from others of its name: the hash of its file, or the name of its module."""
    target = spec.rpartition(":")[0]
    return sha256_file(target) if Path(target).is_file() else target

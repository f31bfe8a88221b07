"""What masks, ranks and dropped deltas change on purpose, added up over cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from spdexport.verification.result import Approximation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The change of all outputs on one case.

    Attributes:
        max_abs: The largest difference.
        squared_error: The sum of squared differences.
        squared_norm: The sum of squares of the dense model's outputs.
        agreeing: Samples whose largest entry in the first output is the same.
        samples: Samples that were compared so; 0 where the first output is not (batch, classes).
        right: Samples of the dense and of the masked model whose largest entry is the label; None without labels.
    """

    max_abs: float
    squared_error: float
    squared_norm: float
    agreeing: int
    samples: int
    right: tuple[int, int] | None = None

    @classmethod
    def between(cls, dense: Mapping[str, Array], masked: Mapping[str, Array], *, labels: Array | None = None) -> Self:
        """Compare float outputs of the dense and of the masked model, both in float64.

        Args:
            dense: The dense model's outputs by name.
            masked: The masked model's.
            labels: The right class of each sample, (batch,); None where they are not known.
        """
        largest = error = norm = 0.0
        agreeing = samples = 0
        right = None
        for index, (name, before) in enumerate(dense.items()):
            if before.dtype.kind not in "fc":
                continue
            difference = np.abs(before - masked[name])
            largest = max(largest, float(difference.max(initial=0.0)))
            error += float((difference**2).sum())
            norm += float((np.abs(before) ** 2).sum())
            if index == 0 and before.ndim == 2 and before.dtype.kind == "f":
                classes = [values.argmax(axis=1) for values in (before, masked[name])]
                agreeing = int((classes[0] == classes[1]).sum())
                samples = before.shape[0]
                if labels is not None:
                    # A batch of one may have been repeated for the trace.
                    wanted = np.resize(labels, samples)
                    right = (int((classes[0] == wanted).sum()), int((classes[1] == wanted).sum()))
        return cls(
            max_abs=largest,
            squared_error=error,
            squared_norm=norm,
            agreeing=agreeing,
            samples=samples,
            right=right,
        )


def approximation(changes: Sequence[Change]) -> Approximation | None:
    """Return all cases together; None without any."""
    if not changes:
        return None
    error, norm = sum(c.squared_error for c in changes), sum(c.squared_norm for c in changes)
    samples = sum(c.samples for c in changes)
    labelled = [c for c in changes if c.right is not None]
    known = sum(c.samples for c in labelled)
    before, after = (sum(c.right[i] for c in labelled if c.right is not None) for i in (0, 1))
    return Approximation(
        max_abs=max(c.max_abs for c in changes),
        relative_l2=float(np.sqrt(error / norm)) if norm else 0.0,
        top1_agreement=sum(c.agreeing for c in changes) / samples if samples else None,
        samples=samples,
        top1_before=before / known if known else None,
        top1_after=after / known if known else None,
    )

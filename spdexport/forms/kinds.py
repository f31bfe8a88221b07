"""The kinds of forms, and what becomes of a weight delta: the words that plans, files and reports have for them."""

from __future__ import annotations

from enum import StrEnum


class DeltaUse(StrEnum):
    """What became of the weight delta of one layer."""

    KEPT = "kept"
    DROPPED = "dropped"
    NONE = "none"
    """There is none: no factors, or it is only rounding."""


class FormKind(StrEnum):
    """The kind of form that a layer takes."""

    DENSE = "dense"
    """One layer with the effective weight."""
    FACTORIZED = "factorized"
    """The source's own V and U."""
    FACTORIZED_WITH_DELTA = "factorized+delta"
    """The same, and the weight delta as a layer beside them."""
    RECOMPRESSED = "recompressed"
    """V and U made anew from the effective weight."""
    SPATIAL = "spatial"
    """A kernel along the first axis, then one along the others: k x 1 and 1 x k."""
    TUCKER = "tucker2"
    """1x1, the kernel between fewer channels, 1x1."""
    CP = "cp"
    """1x1, the kernel on each channel by itself, 1x1."""
    CONSTANT = "constant"
    """The effective weight is zero: the output is the bias."""

    @classmethod
    def literal(cls, delta: DeltaUse) -> FormKind:
        """Return the form of the source's own V and U, with the delta where that is kept."""
        return cls.FACTORIZED_WITH_DELTA if delta is DeltaUse.KEPT else cls.FACTORIZED

    @property
    def is_literal(self) -> bool:
        """Whether the form has the source's own V and U."""
        return self in (FormKind.FACTORIZED, FormKind.FACTORIZED_WITH_DELTA)

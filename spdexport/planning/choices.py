"""What the user can want of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from spdexport.cost import LANE_WIDTH
from spdexport.forms import FormKind


class Delta(StrEnum):
    """What becomes of a weight delta."""

    AUTO = "auto"
    KEEP = "keep"
    DROP = "drop"


class FormChoice(StrEnum):
    """Which form the layers with factors take."""

    FACTORIZED = "factorized"
    DENSE = "dense"
    SPATIAL = "spatial"
    TUCKER = "tucker2"
    CP = "cp"
    AUTO = "auto"

    @property
    def chain(self) -> FormKind | None:
        """The kind of chain that every layer takes which has such a form; None for the other choices."""
        return FormKind(self.value) if self in (FormChoice.SPATIAL, FormChoice.TUCKER, FormChoice.CP) else None


class Objective(StrEnum):
    """What ``auto`` makes least."""

    MACS = "macs"
    PARAMS = "params"
    LATENCY = "latency"


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the user wants of the plan.

    Attributes:
        form: ``factorized``, ``dense``, ``spatial``, ``tucker2``, ``cp``, or ``auto`` for the cheapest of each layer.
        delta: ``keep`` or ``drop`` the weight delta; ``auto`` keeps it for layers without a mask and drops it for
            layers with one.
        keep_masks: Whether masks stay visible between V and U, as multiplications.
        layers: Patterns (fnmatch) of the layers to decompose; empty for all.
        exclude: Patterns of the layers to leave alone.
        optimize_for: What ``auto`` makes least: ``macs``, ``params`` or ``latency``.
        lane_width: Channels that the target computes together, for counting MACs; 1 counts them one by one.
        rank: Ranks that effective weights are truncated to: ``N`` for all layers, ``PATTERN=N`` for some.
        energy: The share of the squared singular values that truncating an effective weight keeps; None for all.
        max_error: The relative Frobenius error that truncating an effective weight may make; None for none.
    """

    form: FormChoice = FormChoice.FACTORIZED
    delta: Delta = Delta.AUTO
    keep_masks: bool = False
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    optimize_for: Objective = Objective.MACS
    lane_width: int = LANE_WIDTH
    rank: tuple[str, ...] = ()
    energy: float | None = None
    max_error: float | None = None

    @property
    def truncates(self) -> bool:
        """Whether weights may be approximated by ones of smaller rank."""
        return bool(self.rank) or self.energy is not None or self.max_error is not None

    @property
    def padding(self) -> int:
        """Channels to multiples of which components are padded in an ONNX file; 1 for not at all."""
        pads = self.form is FormChoice.AUTO and self.optimize_for is not Objective.PARAMS
        return self.lane_width if pads else 1

"""What verification finds: a status for each edge, and the worst of them as the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from spdexport.names import count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.conv import Array
    from spdexport.planning import Plan


class Status(StrEnum):
    """What became of a check."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_RUN = "not_run"


class Meant(StrEnum):
    """What a file is to compute."""

    MODEL = "a model of torch"
    SOURCE = "an ONNX file that it was converted from"
    OTHER = "another ONNX file"
    ITSELF = "what it says itself"


SEVERITY = (Status.NOT_RUN, Status.PASS, Status.INCONCLUSIVE, Status.FAIL)
"""From the best to the worst; the verdict is the worst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeResult:
    """One edge of the chain from the module to the device.

    Attributes:
        edge: ``capture``, ``weights``, ``rewrite``, ``export``, ``optimize`` or ``device``.
        status: What became of it.
        provider: The ONNX Runtime provider, for edges that ran one.
        noise_ratio: The largest error over the floor of rounding, over all outputs and inputs; infinite where an
            output has no value to compare. None where nothing was compared.
        max_abs: The largest absolute error.
        first_divergence: The module path of the first layer that diverges, on a failure.
        reason: Why it failed, is inconclusive, or did not run; on a pass what was compared.
        setting: Of the provider, where an edge runs in more than one; the reason begins with it.
    """

    edge: str
    status: Status
    provider: str | None = None
    noise_ratio: float | None = None
    max_abs: float | None = None
    first_divergence: str | None = None
    reason: str = ""
    setting: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult:
    """One layer of the plan.

    Attributes:
        name: The layer, as ``LayerPlan.name``.
        status: The worst of what is known of the layer; ``not_run`` where nothing is.
        weights_ratio: The largest error of the file's composed weight over what rounding explains at that entry, as on
            the weights edge: 0 for equal bits, infinite where nothing should have changed it and something did. None
            where it was not compared.
        output_ratio: The largest error of the layer's output over its floor, as ONNX Runtime computes it unoptimized on
            the CPU, in the worst channel; what the layers before it did wrong is in it. None unless it was asked for.
        bound: How far the error of the weight can move the layer's output at any one location, in 2-norm: the 2-norm of
            the error as a matrix (out, in * k * k) times the largest 2-norm of a patch of its input, plus the 2-norm of
            the bias's error. The patch is all input channels under the kernel at one location, zero padding included;
            the largest is over all locations, samples and compared inputs. Where both sides of the matrix are
            above 512, a bound of its 2-norm takes its place. None where the weight was not compared.
    """

    name: str
    status: Status
    weights_ratio: float | None = None
    output_ratio: float | None = None
    bound: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorstCase:
    """The input on which ONNX Runtime was furthest from the reference: all that it takes to see it again.

    Attributes:
        edge: The edge it was seen on.
        provider: The provider of that edge.
        case: What the input is called among ``Verification.inputs``.
        status: What was found on it.
        noise_ratio: The largest error over the floor of rounding.
        inputs: By the file's names.
        outputs: What was computed, by name; empty where the session failed.
        reference: What is right, by name, floats in float64.
    """

    edge: str
    provider: str | None
    case: str
    status: Status
    noise_ratio: float
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    reference: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Approximation:
    """What masks, ranks and dropped deltas change on purpose: dense model against the masked one, both in float64.

    Attributes:
        max_abs: The largest difference of any output.
        relative_l2: Norm of the difference over the norm of the dense outputs.
        top1_agreement: The share of samples whose largest entry is the same, for a first output (batch, classes).
        samples: How many samples these were: those that the check ran, the given ones and its own.
        top1_before: The share of samples whose largest entry is the label, of the dense model; None without labels.
        top1_after: The same of the masked model.
        max_relative_l2: The user's limit to ``relative_l2``; None without one.
        max_top1_drop: The user's limit to ``top1_drop``; None without one.
        exceeded: What is above a limit, in words; empty where nothing is.
    """

    max_abs: float
    relative_l2: float
    top1_agreement: float | None
    samples: int = 0
    top1_before: float | None = None
    top1_after: float | None = None
    max_relative_l2: float | None = None
    max_top1_drop: float | None = None
    exceeded: tuple[str, ...] = ()

    @property
    def top1_drop(self) -> float | None:
        """What is lost in accuracy; without labels, the share of samples whose top class is another one."""
        if self.top1_before is not None and self.top1_after is not None:
            return self.top1_before - self.top1_after
        return None if self.top1_agreement is None else 1 - self.top1_agreement

    @property
    def agreement(self) -> str | None:
        """How many samples have the same top class, in words; None where that is not known."""
        if self.top1_agreement is None:
            return None
        return f"the top class is the same for {self.top1_agreement:.1%} of the check's {count(self.samples, 'sample')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """All that verification found.

    Attributes:
        edges: In the order of the chain.
        approximation: What the masks change; None where nothing is meant to change.
        inputs: The inputs that were compared, in words.
        notes: What else the user should know.
        seed: Of generated inputs and simulated rounding.
        versions: Of everything that took part.
        artifacts: SHA-256 of the files that were compared.
        plan: The decision for each layer; None where there was no source to plan from.
        layers: What is known of each layer: of the plan, in its order; without a plan, those of the file where
            thoroughness was asked for.
        worst: The worst input on the edges that ran ONNX Runtime; None where none ran.
        atol: The absolute tolerance that the user set in the place of the model's own; None for the model's own.
        rtol: The relative tolerance that the user set; the two add up.
        recorded: The options that change what is intended and that the file itself records, where the user did not give
            them: JSON values by name.
        meant: What the file was compared with.
    """

    edges: tuple[EdgeResult, ...]
    approximation: Approximation | None
    inputs: tuple[str, ...]
    notes: tuple[str, ...]
    seed: int
    versions: Mapping[str, str]
    artifacts: Mapping[str, str]
    plan: Plan | None = None
    layers: tuple[LayerResult, ...] = ()
    worst: WorstCase | None = None
    atol: float | None = None
    rtol: float | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)
    meant: Meant = Meant.MODEL

    @property
    def exceeds(self) -> bool:
        """Whether what is changed on purpose is above a limit of the user; the verdict, equivalence, is without it."""
        return self.approximation is not None and bool(self.approximation.exceeded)

    @property
    def verdict(self) -> Status:
        """The worst status of all edges; inconclusive where no edge ran at all."""
        worst = worst_status([e.status for e in self.edges])
        return Status.INCONCLUSIVE if worst is Status.NOT_RUN else worst


def worst_status(statuses: list[Status]) -> Status:
    """Return the worst of some statuses; ``not_run`` for none."""
    return max(statuses, key=SEVERITY.index, default=Status.NOT_RUN)

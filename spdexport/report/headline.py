"""What a report says first: the verdict, and what has changed, in a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdexport.compression.result import Compression
from spdexport.folding import Folding
from spdexport.forms import FormKind
from spdexport.names import count
from spdexport.pipeline import Conversion, Inspection
from spdexport.planning import FormChoice, Objective
from spdexport.recorded import as_options
from spdexport.report import compression, summary
from spdexport.report.common import verification_of
from spdexport.report.numbers import ratio, size
from spdexport.verification.result import Approximation, Status, Verification

if TYPE_CHECKING:
    from spdexport.report.common import Result

VERDICTS = {
    Status.PASS: "equivalent",
    Status.FAIL: "not equivalent: what the file computes differs by more than rounding",
    Status.INCONCLUSIVE: "inconclusive: the check could not decide",
    Status.NOT_RUN: "not verified",
}
"""Verdicts in words, for every report."""

PLANNED = "planned: no file was written"
"""What stands in the place of the verdict of a dry run."""

NOTHING_TO_DECOMPOSE = "No layer could be decomposed: the file holds the model as it is"
"""What is said of a source without convolutions and linear layers, or with ones that are all left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The first lines of a report.

    Attributes:
        status: The verdict.
        verdict: The same in words, with what it is about.
        exceeded: What is above a limit of the user: the run has failed then, whatever the verdict.
        changes: What changed: layers, costs, outputs.
        files: What was written, each with its size.
        remarks: What there is to know of these files.
    """

    status: Status
    verdict: str
    exceeded: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def has_failed(self) -> bool:
        """Whether a job that asks for this has failed."""
        return self.status is Status.FAIL or bool(self.exceeded)


def headline(result: Result) -> Headline:
    """Return the first lines of the report of a check or a conversion."""
    found = verification_of(result)
    status = Status.NOT_RUN if found is None else found.verdict
    change = found.approximation if found else None
    changes = [] if change is None else [changed_outputs(change)]
    files: tuple[str, ...] = ()
    match result:
        case Conversion():
            changes = [*_converted(result), *changes]
            files = written_files(result, saved_bytes(result))
        case Folding():
            changes = [f"{count(len(result.folded), 'layer')} folded into one convolution or matrix product each"]
            files = written_files(result)
    planned = isinstance(result, Conversion) and not result.outputs and found is None
    return Headline(
        status=status,
        verdict=PLANNED if planned else VERDICTS[status] + what_is(found),
        exceeded=change.exceeded if change else (),
        changes=tuple(changes),
        files=files,
        remarks=(*_larger(result), *_renamed(found)) if files else (),
    )


def what_is(verification: Verification | None) -> str:
    """Return what a pass says, no more than was compared: a file by itself does not tell what was meant."""
    if verification is None or verification.verdict is not Status.PASS:
        return ""
    ran = {edge.edge for edge in verification.edges if edge.status is not Status.NOT_RUN}
    if verification.recorded:
        return (
            f": the file computes, to rounding, what it says itself: the model with {as_options(verification.recorded)}"
        )
    if "rewrite" in ran:
        return ": the file computes the intended model, to rounding"
    return " to rounding, on the edges that ran"


def changed_outputs(change: Approximation) -> str:
    """Return what masks, ranks and dropped deltas change on purpose, in one line: accuracy where labels tell it."""
    norm = f"outputs differ by {change.relative_l2:.1%} in norm"
    if change.top1_before is not None and change.top1_after is not None:
        return f"accuracy on the labels: {change.top1_before:.1%} -> {change.top1_after:.1%}; {norm}, as intended"
    if change.agreement is not None:
        return f"{norm}, as intended; {change.agreement}"
    return f"{norm}, at most {ratio(change.max_abs)}, as intended"


def decomposed(result: Inspection) -> str:
    """Return how many layers have V and U, as what, and where these come from."""
    changed = [layer for layer in result.plan.layers if layer.is_decomposed]
    layers = [layer for layer in changed if layer.components is not None or layer.form is not FormKind.DENSE]
    if not changed:
        return NOTHING_TO_DECOMPOSE
    forms = sorted({layer.form for layer in layers})
    how = f" ({forms[0]})" if len(forms) == 1 else ""
    dense = len(changed) - len(layers)
    others = f", {count(dense, 'dense one')} with other weights" if dense else ""
    return f"{count(len(layers), 'layer')} decomposed{how}{others}, components from {origin(result.components)}"


def origin(kind: str) -> str:
    """Return where components come from, in words."""
    return {
        "spd": "the SPD run",
        "file": "the components file",
        "svd": "the exact SVD of the weights",
        "search": "the search",
    }[kind]


def written_files(result: Conversion | Folding, saved: int = 0) -> tuple[str, ...]:
    """Return the files with their sizes.

    Of a single one without data beside it, how large it would be with dense layers.
    """
    sizes = [(path, path.stat().st_size) for path in result.outputs]
    dense = f" (dense {size(sizes[0][1] + saved)})" if saved and len(sizes) == 1 else ""
    return tuple(f"{path}, {size(number)}{dense}" for path, number in sizes)


def _converted(result: Conversion) -> list[str]:
    plan = result.plan
    costs = summary.totals(plan) if any(layer.is_decomposed for layer in plan.layers) else []
    found = compression.headline(result.search) if isinstance(result, Compression) else []
    return [*found, decomposed(result), *costs]


def saved_bytes(result: Conversion) -> int:
    """Bytes that the forms save, and what was trimmed."""
    return result.plan.bytes_saved + (result.trimming.bytes_saved if result.trimming is not None else 0)


def _larger(result: Result) -> tuple[str, ...]:
    """That forms chosen by their cost have made the file larger, for who expects the smallest."""
    if not isinstance(result, Conversion) or saved_bytes(result) >= 0:
        return ()
    options = result.plan.options
    if options.form is not FormChoice.AUTO or options.optimize_for is Objective.PARAMS:
        return ()
    by = options.optimize_for.value.replace("macs", "MACs")
    return (f"It is larger than with dense layers: forms were chosen by {by}. --optimize-for params chooses by size.",)


def _renamed(found: Verification | None) -> tuple[str, ...]:
    """Why a file has another name than the one that was asked for."""
    why = None
    if found is not None and found.verdict is Status.FAIL:
        why = "The check failed"
    elif found is not None and found.exceeds:
        why = "A limit is exceeded"
    return (
        ()
        if why is None
        else (f"{why}: the file has this name instead of the one asked for, which was left as it was.",)
    )

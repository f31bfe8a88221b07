"""Edges and layers in words: what each is called everywhere, what a failure means, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdexport.report.numbers import ratio
from spdexport.verification.compare import FACTOR
from spdexport.verification.result import EdgeResult, Meant, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.verification.result import LayerResult, Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What a result that is no pass says to someone who does not know how the check works.

    Attributes:
        edge: The edge it is about, as ``edge_names`` calls it.
        means: What the status of this edge means.
        to_do: What the user can do.
    """

    edge: str
    means: str
    to_do: str


_FAILURES = {
    "capture": (
        "what torch.export traced is not what the module computes",
        "in the forward of the layer that is named, look for branches that depend on values, and for state it changes",
    ),
    "weights": (
        "the file does not hold the weights and operators of the intended model",
        "if the file was edited, or its source has changed since, convert again; if the file is new, report it",
    ),
    "rewrite": (
        "the factors compute something else than the layers whose place they took",
        "this is a fault of spdexport: report it with the model; convert --exclude LAYER leaves a layer as it is",
    ),
    "export": (
        "ONNX Runtime computes something else than it should, even with its optimizations off",
        "if the weights edge passes, suspect the exporter or ONNX Runtime: try convert --opset N, and other versions",
    ),
    "optimize": (
        "ONNX Runtime's graph optimizations change what the file computes; without them it is right",
        "set graph_optimization_level to ORT_DISABLE_ALL in the SessionOptions, or try another version of ONNX Runtime",
    ),
    "device": (
        "nothing fails on the CPU, and this provider computes something else",
        "do not deploy on it with these settings; verify --repro FILE.npz saves what its makers need to see it",
    ),
}
"""For each edge, what a failure means where no edge before it fails, and what to do."""

_UNDECIDED = {
    "device": (
        "nothing was shown about this provider, neither for nor against it",
        "mend what is named above and check again, or check the CPU alone with --provider cpu",
    ),
}
_UNDECIDED_ELSEWHERE = (
    "the check ran and shows nothing, neither for nor against the file",
    "give inputs of your own, such as the model meets in use, with verify --inputs FILE",
)


_FILE_FAILURES = _FAILURES | {
    "capture": (
        "ONNX Runtime computes something else from the source itself than the source says",
        "suspect ONNX Runtime, for nothing that was converted takes part in this edge: try another version of it",
    ),
    "rewrite": (
        "the factors compute something else than the layers whose place they took",
        "this is a fault of spdexport: report it with the file; convert --exclude LAYER leaves a layer as it is",
    ),
    "export": (
        "ONNX Runtime computes something else than the file says, even with its optimizations off",
        "if the weights edge passes, suspect ONNX Runtime: try convert --opset N, and other versions of it",
    ),
}
"""The same where the source is an ONNX file, or there is none."""

_OTHER_FAILURES = _FILE_FAILURES | {
    "weights": (
        "the file has other weights or operators than the file that it is compared with",
        "look at what is named, in both files; verify FILE --against its source tells which of the two is right",
    ),
    "export": (
        "the file computes something else than the file that it is compared with",
        "look at the layer that is named, in both files; verify FILE alone tells whether ONNX Runtime is at fault",
    ),
}
"""The same where two files are compared that were not made of each other."""

_FAILURES_BY = {
    Meant.MODEL: _FAILURES,
    Meant.SOURCE: _FILE_FAILURES,
    Meant.ITSELF: _FILE_FAILURES,
    Meant.OTHER: _OTHER_FAILURES,
}

_REFUSED = (
    "ONNX Runtime does not run the file, so that nothing was shown about what it computes",
    "its message says what it does not take: try another version of it, or convert --opset N",
)
_NO_REFERENCE = (
    "there is nothing to compare a part of the file with, so that nothing was shown about this part",
    "compare the part that is named with the model that it comes from; what else is reported here holds without it",
)


def _is_refusal(edge: EdgeResult) -> bool:
    return any(f"ONNX Runtime {what} the file:" in edge.reason for what in ("does not load", "cannot run"))


def edge_names(edges: Sequence[EdgeResult]) -> list[str]:
    """Return what each edge is called: ``export (cpu)``; with its setting where one provider ran in two.

    The names are unique, and the same for the same checks in every run: programs that collect reports rely on it.
    """
    plain = [f"{edge.edge} ({edge.provider})" if edge.provider else edge.edge for edge in edges]
    names: list[str] = []
    for edge, name in zip(edges, plain, strict=True):
        full = f"{name}, {edge.setting}" if plain.count(name) > 1 and edge.setting else name
        number = 2
        while full in names:
            full, number = f"{name} #{number}", number + 1
        names.append(full)
    return names


def edge_reason(edge: EdgeResult) -> str:
    """Return why an edge has its status, with the layer and the size of the error where it failed."""
    said = edge.reason
    if edge.first_divergence:
        said = f"first diverges at {edge.first_divergence}: {said}"
    if edge.status is Status.FAIL and edge.max_abs is not None and "off by" not in said:
        said += f" (largest error {ratio(edge.max_abs)})"
    return said


def layer_reason(layer: LayerResult) -> str:
    """Return why a layer has its status."""
    if layer.status is Status.NOT_RUN:
        return "nothing of this layer was compared"
    said = []
    if layer.weights_ratio is not None:
        said.append(f"weights: {_times(layer.weights_ratio)}")
    if layer.output_ratio is not None:
        said.append(f"output: {_times(layer.output_ratio)}")
    if layer.bound:
        said.append(f"the error of the weights moves the output by at most {ratio(layer.bound)}")
    return "; ".join(said) or "the edge that checks it says why"


def _times(number: float) -> str:
    if number == 0:
        return "no error"
    if number == float("inf"):
        return "an error that rounding cannot explain at all"
    return f"an error of {ratio(number)} times what rounding explains" + (
        f", above {FACTOR:g} fails" if number > FACTOR else ""
    )


def failing_layers(verification: Verification) -> list[LayerResult]:
    """Return the layers that fail, in the model's order."""
    return [layer for layer in verification.layers if layer.status is Status.FAIL]


def advice(verification: Verification) -> Advice | None:
    """Return what to make of a verdict that is no pass.

    Of the first edge that has it, since later ones follow from it.
    """
    verdict = verification.verdict
    names = edge_names(verification.edges)
    for edge, name in zip(verification.edges, names, strict=True):
        if edge.status is not verdict:
            continue
        if verdict is Status.FAIL:
            means, to_do = _FAILURES_BY[verification.meant][edge.edge]
            if _is_refusal(edge):
                means = "ONNX Runtime does not run the file, which is not valid as it is"
            return Advice(edge=name, means=means, to_do=to_do)
        if verdict is Status.INCONCLUSIVE:
            means, to_do = _UNDECIDED.get(edge.edge, _UNDECIDED_ELSEWHERE)
            if _is_refusal(edge):
                means, to_do = _REFUSED
            elif "the float64 reference cannot compute" in edge.reason:
                means, to_do = _NO_REFERENCE
            return Advice(edge=name, means=means, to_do=to_do)
    return None


def tolerance(verification: Verification) -> str:
    """Return what the check allows, in words."""
    given = [f"{name} {value:g}" for name in ("atol", "rtol") if (value := getattr(verification, name)) is not None]
    if given:
        return f"tolerance: {' and '.join(given)}, set by the user in the place of the model's own"
    return f"noise: the largest error over what rounding alone explains; above {FACTOR:g} fails"

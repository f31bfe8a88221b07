"""The decisions of programs: whether rounding changes them, where they are taken from, and what is right given them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.arrays import to_numpy
from spdexport.reference.decisions_torch import PIXELS, has_rule
from spdexport.reference.torch_reference import evaluate
from spdexport.verification.compare import Comparison, failed
from spdexport.verification.decisions import Steadiness, follow, recording

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import torch
    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.reference.decisions import Decide
    from spdexport.verification.decisions import Evaluate
    from spdexport.verification.edge import Edge
    from spdexport.verification.inputs import Case
    from spdexport.verification.trial import Trial


def steadiness_of(program: ExportedProgram, steady: Steadiness) -> Callable[[str, torch.Tensor], None]:
    """Return what watches an evaluation of a program for its choices: nodes that choose, integers and truth values."""
    choosing = {node.name for node in program.graph.nodes if has_rule(node.target) and node.target not in PIXELS}

    def watch(name: str, value: torch.Tensor) -> None:
        if name in choosing or not (value.is_floating_point() or value.is_complex()):
            steady.see(name, [to_numpy(value)])

    return watch


def followed_program(
    edge: Edge,
    trial: Trial,
    right: Evaluate,
    choose: Callable[[Decide], object],
    compare: Callable[[Trial], Comparison],
    *,
    unit_rounding: float,
    seed: int,
) -> Comparison:
    """Return what is found on an edge once a program takes the decisions of another evaluation.

    Args:
        edge: The edge, which is told what was followed.
        trial: The case, without decisions.
        right: The program whose float64 evaluation is right.
        choose: Evaluates what the decisions are taken from.
        compare: Compares with what is right given them.
        unit_rounding: Of the model's dtype.
        seed: Of the simulated rounding.
    """
    values: dict[str, Array] = {}
    choose(recording(values))
    given = follow(right, values, unit_rounding=unit_rounding, seed=seed, ties_are_open=True)
    if given.wrong is not None:
        edge.first = edge.first or given.wrong.node
        return failed(f"a wrong decision: {given.wrong.words}")
    if given.followed:
        edge.followed.append((trial.name, given.told()))
    return compare(given.trial(trial))


def node_values(
    program: ExportedProgram, case: Case, names: Collection[str], outputs: Sequence[str]
) -> dict[str, Array]:
    """Return what a program has in float64 for some values of the file made of it.

    Args:
        program: Whose nodes have the names of the file's values.
        case: The inputs.
        names: Of the file's values.
        outputs: As for ``first_divergent_value``.
    """
    ends = [getattr(a, "name", "") for a in program.graph.output_node().args[0]]
    renamed = dict(zip([name for name in ends if name], outputs, strict=False))
    found: dict[str, Array] = {}

    def watch(name: str, tensor: torch.Tensor) -> None:
        for known in {name, renamed.get(name, name)} & set(names):
            found[known] = to_numpy(tensor)

    evaluate(program, case.inputs.args, case.inputs.kwargs, watch=watch)
    return found

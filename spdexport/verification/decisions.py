"""Evaluating a model given the choices that a session made, and judging these.

All runs take the session's choices where the model chooses: one in float64, which is what is right given them, and
some with simulated rounding. These tell how far rounding moves what each choice was made by, given the choices before,
so that each is judged by itself: the first that is beyond rounding is wrong, and what comes after it tells nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.names import count
from spdexport.reference.decisions import Decide, Decision, Judged, Noises, Rule, noise_of, nothing
from spdexport.reference.decisions_table import RULES
from spdexport.reference.noise import Noise
from spdexport.reference.unavailable import ReferenceUnavailable
from spdexport.verification.compare import FACTOR
from spdexport.verification.trial import NOISE_RUNS, REFERENCE_UNIT_ROUNDING, Trial, masked_floor, rounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array

SECOND_LOOK = (3, 5, 8)
"""Further runs with simulated rounding before a decision is called wrong, each so many after another look."""

Evaluate = Callable[[Noise | None, Decide], Mapping[str, "Array"]]
"""Gives a model's outputs in float64, with simulated rounding or without, and with what is decided where it chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was found of the choices at one node.

    Attributes:
        node: The node's name.
        output: The name of its value.
        number: How many elements were chosen otherwise than float64 does.
        words: One of them in words.
        is_certain: Whether no amount of rounding explains it.
    """

    node: str
    output: str
    number: int
    words: str
    is_certain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Given:
    """What is right given some choices.

    Attributes:
        outputs: In float64.
        noisy: The same with simulated rounding.
        followed: The nodes at which rounding explains that the choice is another than float64's.
        wrong: The first at which it does not; None where there is none.
        unsteady: The nodes whose choice could not be followed and changes under simulated rounding, in words.
    """

    outputs: Mapping[str, Array]
    noisy: Sequence[Mapping[str, Array]]
    followed: tuple[Choice, ...]
    wrong: Choice | None
    unsteady: tuple[str, ...]

    def trial(self, trial: Trial) -> Trial:
        """Return the same case with what is right given the choices, and the tolerance that rounding leaves then."""
        own = {name: rounded(value, trial.own[name].dtype) for name, value in self.outputs.items()}
        floors, stable = {}, {}
        for name, exact in self.outputs.items():
            noisy = [n[name] for n in self.noisy]
            is_float = exact.dtype.kind in "fc"
            floors[name] = masked_floor(exact, own[name], noisy) if is_float else 0.0
            stable[name] = is_float or all(np.array_equal(exact, n) for n in noisy)
        return Trial(
            name=trial.name,
            reference=self.outputs,
            own=own,
            floors=floors,
            stable=stable,
            perturb=trial.perturb,
            seed=trial.seed,
            tolerance=trial.tolerance,
        )

    def told(self) -> str:
        """Return what was followed, in words; empty where nothing was."""
        if not self.followed:
            return ""
        number = count(sum(choice.number for choice in self.followed), "decision")
        return f"{number} within rounding followed: {self.followed[0].words}"


def follow(
    evaluate: Evaluate, values: Mapping[str, Array], *, unit_rounding: float, seed: int, ties_are_open: bool = False
) -> Given:
    """Evaluate a model given the choices that some of its inner values tell, and judge these.

    Args:
        evaluate: The model.
        values: The inner values, by name; where a node's are missing, its choice is not followed.
        unit_rounding: Of the dtype that the values were computed in.
        seed: Of the simulated rounding.
        ties_are_open: Whether any order of values that are equal and exact is right.

    Raises:
        ReferenceUnavailable: The model cannot be evaluated, with right choices.
    """
    u = max(unit_rounding, REFERENCE_UNIT_ROUNDING)
    watch = _Watch(values, ties_are_open)
    noisy: list[Mapping[str, Array]] = []
    outputs: Mapping[str, Array] = {}
    failure: ReferenceUnavailable | None = None
    for run in range(-1, NOISE_RUNS):
        watch.begin(is_exact=run < 0)
        try:
            found = evaluate(None if run < 0 else Noise(seed=seed * 1000 + run, unit_rounding=u), watch.decide)
        except ReferenceUnavailable as error:
            # A choice that is wrong may be one that nothing can be computed from.
            failure = error
            continue
        if run < 0:
            outputs = found
        else:
            noisy.append(found)
    followed, wrong = watch.judged(u)
    further = iter(range(NOISE_RUNS, NOISE_RUNS + sum(SECOND_LOOK)))
    for number in SECOND_LOOK:
        if wrong is None or wrong.is_certain or failure is not None:
            break
        # A few runs may happen to leave alone what rounding moves: what lies behind a Relu in half of them.
        for run in itertools.islice(further, number):
            watch.begin(is_exact=False)
            evaluate(Noise(seed=seed * 1000 + run, unit_rounding=u), watch.decide)
        followed, wrong = watch.judged(u)
    if failure is not None and wrong is None:
        raise failure
    return Given(outputs=outputs, noisy=noisy, followed=followed, wrong=wrong, unsteady=tuple(watch.unsteady))


def recording(values: dict[str, Array]) -> Decide:
    """Return what remembers how a model chooses by itself, by the names of its values."""

    def decide(node: Decision) -> None:
        rule = RULES[node.op]
        if not node.is_inner and rule.chooses(node):
            values.update({node.output_names[i]: node.outputs[i] for i in rule.taken})

    return decide


def forcing(values: Mapping[str, Array]) -> Decide:
    """Return what makes a model choose as some inner values tell."""
    watch = _Watch(values, False)
    return watch.decide


class Steadiness:
    """Whether simulated rounding changes a choice: then the tolerance that it sets is one for another computation."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], bytes] = {}
        self._times: dict[str, int] = {}
        self._is_exact = True
        self.changed: dict[str, None] = {}

    def begin(self, *, is_exact: bool) -> None:
        """Tell that a run begins; one without simulated rounding also begins a new case."""
        self._is_exact, self._times = is_exact, {}
        if is_exact:
            self._known, self.changed = {}, {}

    def see(self, name: str, values: Sequence[Array]) -> None:
        """Take in the choice of a node."""
        times = self._times[name] = self._times.get(name, -1) + 1
        digest = hashlib.blake2b(b"".join(repr(v.shape).encode() + np.ascontiguousarray(v).tobytes() for v in values))
        known = self._known.setdefault((name, times), digest.digest()) if self._is_exact else None
        if known is None and self._known.get((name, times)) != digest.digest():
            self.changed[name] = None

    def decide(self, node: Decision) -> None:
        """Take in the choice of a node as it is evaluated."""
        rule = RULES[node.op]
        if rule.chooses(node):
            # Not the values themselves: those of pixels move with rounding, and which pixels they are does not.
            choice = rule.choice(node, [node.outputs[i] for i in rule.taken])
            self.see(f"{node.op} node {node.name}", choice if isinstance(choice, list | tuple) else [choice])


@dataclass(slots=True, eq=False)
class _Seen:
    node: Decision
    rule: Rule
    choice: Any
    fault: str
    moved: list[Array | None]


class _Watch:
    """Makes the runs choose as they should, and remembers what each choice was made by."""

    def __init__(self, values: Mapping[str, Array], ties_are_open: bool) -> None:
        self._values, self._ties = values, ties_are_open
        self._seen: dict[str, _Seen] = {}
        self._steady = Steadiness()
        self._is_exact = True

    def begin(self, *, is_exact: bool) -> None:
        """Tell that a run begins; the first is the one without simulated rounding."""
        self._is_exact = is_exact
        self._steady.begin(is_exact=is_exact)

    @property
    def unsteady(self) -> list[str]:
        """The nodes that could not be followed and that simulated rounding changes."""
        return list(self._steady.changed)

    def decide(self, node: Decision) -> Sequence[Array] | None:
        """Return the outputs of a node given its choice."""
        rule = RULES[node.op]
        names = [node.output_names[i] for i in rule.taken if i < len(node.output_names)]
        known = not node.is_inner and len(names) == len(rule.taken) and all(name in self._values for name in names)
        if not known or (names[0] not in self._seen and not rule.chooses(node)):
            self._steady.decide(node)
            return None
        seen = self._seen.get(names[0])
        if self._is_exact or seen is None:
            seen = self._seen[names[0]] = self._first(node, rule, [self._values[name] for name in names])
        else:
            _add_moves(seen, node)
        return None if seen.fault else rule.given(node, seen.choice)

    def _first(self, node: Decision, rule: Rule, values: list[Array]) -> _Seen:
        kept = Decision(
            op=node.op,
            name=node.name,
            inputs=node.inputs,
            outputs=node.outputs,
            output_names=node.output_names,
            attributes=node.attributes,
            compute=node.compute,
            version=node.version,
            ties_are_open=self._ties,
        )
        fault, choice = "", None
        free = node.op in ("NonZero", "NonMaxSuppression")  # their shapes are chosen too
        for value, index in zip(values, rule.taken, strict=True):
            if value.shape != node.outputs[index].shape and not free:
                fault = f"its shape is {value.shape} where {node.outputs[index].shape} is right"
        if not fault:
            choice = rule.choice(kept, values)
        moved = [np.zeros(v.shape) if v is not None and v.dtype.kind == "f" else None for v in node.inputs]
        return _Seen(kept, rule, choice, fault, moved)

    def judged(self, unit_rounding: float) -> tuple[tuple[Choice, ...], Choice | None]:
        """Return the nodes that were followed, and the first wrong one."""
        followed: list[Choice] = []
        for name, seen in self._seen.items():
            noises = Noises(
                inputs=tuple(
                    None if value is None or moved is None else noise_of(value, moved, unit_rounding, FACTOR)
                    for value, moved in zip(seen.node.inputs, seen.moved, strict=True)
                ),
                rounding=FACTOR * unit_rounding,
            )
            found = nothing(seen.fault) if seen.fault else seen.rule.judge(seen.node, seen.choice, noises)
            if found.fault or found.wrong.any():
                return tuple(followed), _choice(seen.node, name, found)
            if found.places.size or len(found.right):
                followed.append(_choice(seen.node, name, found))
        return tuple(followed), None


def _add_moves(seen: _Seen, node: Decision) -> None:
    """Take in how far simulated rounding moved what a node reads."""
    for value, exact, moved in zip(node.inputs, seen.node.inputs, seen.moved, strict=True):
        if moved is not None and value is not None and exact is not None and value.shape == exact.shape:
            with np.errstate(invalid="ignore"):
                move = np.abs(value - exact)
            np.maximum(moved, np.where(np.isfinite(move), move, 0.0), out=moved)


def _choice(node: Decision, output: str, found: Judged) -> Choice:
    where = f"{node.op} node {node.name}"
    if found.fault:
        return Choice(node=node.name, output=output, number=1, words=f"{where}: {found.fault}", is_certain=True)
    with np.errstate(all="ignore"):
        ratios = np.nan_to_num(found.margins / found.noises, nan=0.0, posinf=np.finfo(float).max)
    order = np.where(found.wrong, ratios + 1, -1.0) if found.wrong.any() else ratios
    index = int(order.argmax())
    place = ", ".join(str(int(i)) for i in found.places[index])
    right, got = found.right[index].item(), found.got[index].item()
    words = (
        f"{where}[{place}] chooses {_short(got)} where float64 chooses {_short(right)}, "
        f"with a margin of {found.margins[index]:.3g} where rounding explains {found.noises[index]:.3g}"
    )
    return Choice(node=node.name, output=output, number=len(found.right), words=words)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

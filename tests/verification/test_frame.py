"""The frame of a verification, with the smallest subject that there is: a function of one array."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from spdexport.reference.noise import Noise
from spdexport.verification.check import Check
from spdexport.verification.compare import Tolerance
from spdexport.verification.edge import Edge
from spdexport.verification.frame import NotTakenError, Verifier
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from spdexport.conv import Array
    from spdexport.verification.result import Verification
    from spdexport.verification.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Values:
    name: str
    x: Array
    own: bool = False

    @property
    def batch(self) -> int:
        return len(self.x)


class Doubling(Verifier[Values]):
    """Says that a model doubles its input, and checks that the model gives ``factor`` times its input."""

    MACS_BUDGET = 10

    def __init__(self, given: Iterable[Values], check: Check, factor: float = 2.0, worth: float = 1.0) -> None:
        self.edge = Edge("rewrite")
        self._given, self._factor, self._worth = given, factor, worth
        super().__init__(check, None, 2.0**-24, (self.edge,))

    @property
    def macs_per_sample(self) -> float:
        return self._worth

    def cases(self) -> Iterable[Values]:
        return self._given

    def feeds(self, case: Values) -> Mapping[str, Array]:
        return {"x": case.x}

    def reference(self, case: Values) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        if case.x.shape[1:] == (3,):
            raise NotTakenError("two columns are needed")
        # float32's range is that of this model.
        with np.errstate(over="ignore", invalid="ignore"):
            return {"y": 2 * case.x}, {"y": (2 * case.x).astype(np.float32)}

    def perturbed(self, case: Values, noise: Noise) -> Mapping[str, Array]:
        random = np.random.default_rng(noise.seed)
        return {"y": 2 * case.x * (1 + noise.unit_rounding * random.standard_normal(case.x.shape))}

    def compare(self, case: Values, trial: Trial) -> None:
        self.edge.add(case.name, trial.compare_exact({"y": self._factor * case.x}, trial.reference))


def ordinary(name: str = "normal", **more: object) -> Values:
    return replace(Values(name=name, x=np.random.default_rng(0).standard_normal((2, 2))), **more)  # type: ignore[arg-type]


def found(*given: Values, factor: float = 2.0, worth: float = 1.0, **how: object) -> Verification:
    runner = Doubling(given, Check(seed=3, **how), factor, worth)  # type: ignore[arg-type]
    runner.run()
    runner.judge_still()
    return runner.result(edges=(runner.edge.result(),), artifacts={"a": "b"})


def test_a_right_subject_passes_and_a_wrong_one_fails() -> None:
    right, wrong = found(ordinary()), found(ordinary(), factor=2.00001)
    assert (right.verdict, right.inputs, right.seed, right.notes) == (Status.PASS, ("normal",), 3, ())
    assert right.edges[0].reason == "1 input compared"
    assert wrong.verdict is Status.FAIL
    allowed = found(ordinary(), factor=2.00001, tolerance=Tolerance(atol=0.0, rtol=1e-3))
    assert (allowed.verdict, allowed.rtol) == (Status.PASS, 1e-3)


ODD = [
    (np.full((2, 3), 1.0), "the model does not take it (two columns are needed)"),
    (np.array([[1.0, np.nan]]), "the reference itself is NaN (the input x has NaN)"),
    (np.full((2, 2), 1e200), "the model overflows its own dtype"),
    (np.zeros((0, 2)), "the outputs are empty"),
]


@pytest.mark.parametrize(("x", "why"), ODD, ids=["not taken", "nan", "overflow", "empty"])
def test_inputs_that_show_nothing(x: Array, why: str) -> None:
    """Generated ones are left out and listed; the user's own are the result."""
    drawn = found(ordinary(), ordinary("odd", x=x))
    assert (drawn.verdict, drawn.inputs, drawn.notes) == (
        Status.PASS,
        ("normal",),
        (f"left out, since {why}: odd",),
    )
    own = found(ordinary(), ordinary("given by me", x=x, own=True))
    assert (own.verdict, own.inputs) == (Status.INCONCLUSIVE, ("normal", "given by me"))
    assert own.edges[0].reason == f"{why}, on input given by me"


def test_what_exceeds_the_budget_is_left_out_and_listed() -> None:
    """But for the user's own inputs, the first two cases, and thoroughness."""
    given = [ordinary(str(i)) for i in range(4)] + [ordinary("mine", own=True)]
    brief = found(*given, worth=3)
    assert brief.inputs == ("0", "1", "mine")
    assert brief.notes == ("left out for time: 2", "left out for time: 3")
    assert found(*given, worth=3, thorough=True).inputs == ("0", "1", "2", "3", "mine")


def test_outputs_that_never_change_show_nothing() -> None:
    still = found(ordinary("a", x=np.ones((2, 2))), ordinary("b", x=np.ones((1, 2))))
    assert still.verdict is Status.INCONCLUSIVE
    assert still.edges[0].reason.startswith("no output reacts to the inputs")


def test_only_runners_with_sessions_look_for_layers() -> None:
    runner = Doubling((), Check(seed=0))
    assert runner.open == [runner.edge]
    runner.edge.settle(Status.FAIL, "said already")
    assert runner.open == []

"""Expressions of sizes: what torch writes passes, and what takes for ever does not."""

import pytest

from spdexport.files.expressions import expression_cost, is_guard

S0, S1 = (f"Symbol('s{i}', positive=True, integer=True)" for i in range(2))


@pytest.mark.parametrize(
    "text",
    [
        S0,
        f"Add(Integer(1), FloorDiv(Add({S0}, Integer(-1)), Integer(2)))",
        f"Mul(Rational(1, 2), {S0}, Pow({S1}, Integer(2)))",
        f"FloatPow(ToFloat({S0}), Float('0.5', precision=53))",
        f"TruncToInt(FloatTrueDiv(ToFloat(Mul(Integer(3), {S0})), Float('1.7000000000000001e+0', precision=53)))",
        f"PowByNatural(Integer(2), CeilToInt(OpaqueUnaryFn_log2(ToFloat({S0}))))",
        f"Max(Integer(1), Mod({S0}, Integer(7)), Min({S1}, Integer(9223372036854775807)))",
        f"Piecewise(ExprCondPair({S0}, StrictLessThan({S0}, {S1})), ExprCondPair({S1}, true))",
        "Symbol('u12', integer=True)",
        "s0**2 + ((s1 - 1)//2)*(s0 + 1)**2",
        "Add(" + ", ".join(f"Symbol('s{i}', integer=True)" for i in range(400)) + ")",
    ],
)
def test_what_torch_writes_passes(text):
    assert 0 < (expression_cost(text) or 0) < 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "10**10**10",
        "Pow(Integer(10), Integer(10000000000))",
        f"Pow(Pow({S0}, Integer(1000)), Integer(1000))",
        f"PowByNatural(Integer(2), {S0})",
        "1 << 10000000000",
        f"exp({S0})",
        f"OpaqueUnaryFn_exp(OpaqueUnaryFn_exp({S0}))",
        "Pow(Add(" + ", ".join(f"Symbol('s{i}')" for i in range(9)) + "), Integer(9))",
        "Mul(" + ", ".join(f"Add(Symbol('s{i}'), Integer(1))" for i in range(40)) + ")",
        "Float('1e999999999')",
        "Float('1', precision=1000000000)",
        "Permutation(1000000000)",
        "factorial(100000000)",
        "9" * 30,
        "Symbol('u9999999999')",
        "(" * 300 + "s0" + ")" * 300,
        "+".join(["s0"] * 200_000),
    ],
)
def test_what_takes_for_ever_does_not(text):
    assert expression_cost(text) is None


@pytest.mark.parametrize(
    ("guard", "fine"), [("L['x'].size()[0]**2 >= 2", True), ("L['x'].size()[0]**10**10 > 1", False)]
)
def test_guards_have_the_same_bounds(guard, fine):
    assert is_guard(guard) is fine

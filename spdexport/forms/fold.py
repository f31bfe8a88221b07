"""Folding: a whole form as one dense stage."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from spdexport.forms.base import Stage, absorbed
from spdexport.forms.compose import add, compose

if TYPE_CHECKING:
    from spdexport.forms.base import Form


def fold_form(form: Form) -> Stage:
    """Return the one dense stage that computes the whole form, in float64; its weight is computed when it is asked for.

    Raises:
        CannotComposeError: A chain does not compose, or the chains' results do not add up to one stage.
    """
    stages = [reduce(compose, chain[1:], chain[0]) for chain in form.chains]
    total = reduce(add, stages[1:], stages[0])
    weight, bias = absorbed(total)
    return Stage(spec=total.spec, weight=weight, bias=bias)

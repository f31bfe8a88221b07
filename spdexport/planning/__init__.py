"""The plan of a model: which form each layer takes, and why."""

from spdexport.planning.decide import FactorSource, make_plan
from spdexport.planning.patterns import check_patterns, matches
from spdexport.planning.plan import Decision, Delta, FormChoice, LayerPlan, Plan, PlanOptions

__all__ = [
    "Decision",
    "Delta",
    "FactorSource",
    "FormChoice",
    "LayerPlan",
    "Plan",
    "PlanOptions",
    "check_patterns",
    "make_plan",
    "matches",
]

"""The plan of a model: which form each layer takes, and why."""

from spdexport.planning.choices import Delta, FormChoice, Objective, PlanOptions
from spdexport.planning.decide import FactorSource, make_plan, pure_cost
from spdexport.planning.patterns import check_patterns, matches
from spdexport.planning.plan import ENERGY, SCHEMA_VERSION, Decision, Gain, LayerPlan, Plan, Weighed
from spdexport.planning.record import PlanRecord, as_file, parse_plan, read_plan
from spdexport.planning.truncation import check_truncation, parse_rank

__all__ = [
    "ENERGY",
    "SCHEMA_VERSION",
    "Decision",
    "Delta",
    "FactorSource",
    "FormChoice",
    "Gain",
    "LayerPlan",
    "Objective",
    "Plan",
    "PlanOptions",
    "PlanRecord",
    "Weighed",
    "as_file",
    "check_patterns",
    "check_truncation",
    "make_plan",
    "matches",
    "parse_plan",
    "parse_rank",
    "pure_cost",
    "read_plan",
]

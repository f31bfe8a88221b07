"""Causal-importance functions: what computes SPD's input-dependent masks."""

from spdexport.gates.functions import GateFunction, GateKind, GateLayer, evaluate
from spdexport.gates.global_functions import (
    Attention,
    Block,
    GlobalFunction,
    GlobalInput,
    GlobalKind,
    GlobalShare,
    Stage,
    evaluate_global,
)
from spdexport.gates.sigmoids import Sigmoid, squash

__all__ = [
    "Attention",
    "Block",
    "GateFunction",
    "GateKind",
    "GateLayer",
    "GlobalFunction",
    "GlobalInput",
    "GlobalKind",
    "GlobalShare",
    "Sigmoid",
    "Stage",
    "evaluate",
    "evaluate_global",
    "squash",
]

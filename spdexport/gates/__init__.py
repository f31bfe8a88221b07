"""Causal-importance functions: what computes SPD's input-dependent masks."""

from spdexport.gates.functions import GateFunction, GateKind, GateLayer, evaluate
from spdexport.gates.sigmoids import Sigmoid, squash

__all__ = ["GateFunction", "GateKind", "GateLayer", "Sigmoid", "evaluate", "squash"]

"""Evaluation of an ExportedProgram node by node: in float64 as the reference, in its own dtype, or with noise.

``.double()`` on a traced program does not do: dtypes are written into its nodes and asserted. Here every float value is
promoted when the node that uses it runs, so that no second copy of all weights exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Interpreter

from spdexport.reference.decisions_torch import decided, has_rule
from spdexport.reference.noise import Magnitudes, Noise, undisturbed
from spdexport.reference.operators_float64 import FLOAT64, full_name
from spdexport.reference.operators_torch import DECISIONS
from spdexport.reference.rounding_torch import (
    Call,
    array_of,
    is_exact,
    operator_of,
    with_rounding,
)
from spdexport.rewrite.constants import ASSERTIONS, changed_in_place
from spdexport.rewrite.torch_graph import arguments, operands

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from torch.export import ExportedProgram

    from spdexport.reference.decisions import Decide

aten = torch.ops.aten

LOW_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
LOW_COMPLEX = (torch.complex64, torch.complex32)


def evaluate(
    program: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    float64: bool = True,
    noise: Noise | None = None,
    watch: Callable[[str, torch.Tensor], None] | None = None,
    replaced: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    decide: Decide | None = None,
) -> list[Any]:
    """Return the outputs of a program, flattened in their own order.

    Args:
        program: Any ExportedProgram; where it changes its inputs or buffers in place, it gets copies of them.
        args: Positional inputs.
        kwargs: Keyword inputs.
        float64: Whether every float value is promoted to float64; otherwise the program runs in its own dtypes.
        noise: Noise to add; needs ``float64``.
        watch: Called with each node's name and tensor as it is computed, so that none need be kept.
        replaced: What is computed in the place of layers, by the names of their nodes, from what they read.
        decide: Told each node that chooses; what it gives takes the place of the node's outputs.
    """
    runner = _Interpreter(
        program.graph_module,
        float64=float64,
        noise=noise,
        watch=watch,
        replaced=replaced,
        inputs=_inputs(program),
        decide=decide,
    )
    with torch.no_grad():
        result = runner.run(*_operands(program, args, kwargs or {}, runner))
    return list(result)


def evaluate_together(
    program: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    noises: Sequence[Noise],
    watch: Callable[[str, list[torch.Tensor]], bool],
) -> None:
    """Evaluate a program several times at once, node by node, so that no run's values need be kept for the others.

    Args:
        program: As for ``evaluate``.
        args: Positional inputs.
        kwargs: Keyword inputs.
        noises: One more run in float64 for each.
        watch: Called with each node's name and its tensors: in float64, in the program's own dtypes, and with each of
            the noises. Where it returns True, the evaluation ends.
    """
    runners = [
        _Interpreter(program.graph_module, float64=float64, noise=noise, watch=None, inputs=_inputs(program))
        for float64, noise in [(True, None), (False, None), *((True, noise) for noise in noises)]
    ]
    for runner in runners:
        runner.args_iter = iter(_operands(program, args, kwargs, runner))
    with torch.no_grad():
        for node in program.graph_module.graph.nodes:
            if node.op == "output":
                return
            for runner in runners:
                runner.env[node] = runner.run_node(node)
            found = [runner.env[node] for runner in runners]
            if node.op == "call_function" and isinstance(found[0], torch.Tensor) and watch(node.name, found):
                return
            for runner in runners:
                for done in runner.user_to_last_uses.get(node, []):
                    del runner.env[done]


def _inputs(program: ExportedProgram) -> set[str]:
    """The names of the placeholders that are inputs."""
    return {spec.arg.name for spec in program.graph_signature.input_specs if spec.target is None}


def _operands(
    program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any], runner: _Interpreter
) -> list[Any]:
    """What a program's placeholders stand for: weights, constants and inputs, copied where it writes to them."""
    flat = program._get_flat_args_with_check(args, dict(kwargs))[0]
    signature = program.graph_signature
    values: dict[str, Any] = {}
    for spec in signature.input_specs:
        if spec.target is not None:
            stored = program.state_dict.get(spec.target)
            values[spec.arg.name] = program.constants.get(spec.target) if stored is None else stored
    users = iter(flat)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    ordered = [values[node.name] if node.name in values else next(users) for node in placeholders]
    written = changed_in_place(program.graph)
    return [runner.own(value) if node in written else value for node, value in zip(placeholders, ordered, strict=True)]


class _Interpreter(Interpreter):
    """Runs a graph; promotes the float tensors and dtypes that a node gets to float64."""

    def __init__(
        self,
        module: torch.fx.GraphModule,
        *,
        float64: bool,
        noise: Noise | None,
        watch: Callable[[str, torch.Tensor], None] | None,
        replaced: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
        inputs: Collection[str] | None = None,
        prefix: str = "",
        times: dict[str, int] | None = None,
        decide: Decide | None = None,
    ) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._replaced = replaced or {}
        self._decide = decide
        self._float64 = float64
        self._noise = noise
        self._watch = watch
        self._prefix = prefix
        self._times: dict[str, int] = {} if times is None else times
        self._magnitudes = (noise and noise.magnitudes) or Magnitudes(0)
        self._still = frozenset() if noise is None else _still(module.graph, inputs)
        self._bodies: dict[torch.fx.GraphModule, _Interpreter] = {}

    def own(self, value: Any) -> Any:
        """Return a copy that in-place operators may write to.

        Promoted at once, for what is written must be what is read.
        """
        value = value.clone() if isinstance(value, torch.Tensor) else value
        return self._promote(value) if self._float64 else value

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.name in self._replaced:
            result: Any = self._replaced[n.name](self._promote(self.env[operands(n).data]))
        else:
            result = super().run_node(n)
        if n.op == "call_function":
            if self._noise is not None and n not in self._still and not is_exact(n.target):
                result = self._rounded(n, result)
            if self._decide is not None and has_rule(n.target):
                values = {k: self.env[v] if isinstance(v, torch.fx.Node) else v for k, v in arguments(n).items()}
                given = {k: self._promote(v) if self._float64 else v for k, v in values.items()}
                result = decided(self._decide, n.name, n.target, given, result)
            if self._watch is not None and isinstance(result, torch.Tensor):
                self._watch(n.name, result)
        if n.op == "output" and self._float64:
            return torch.fx.node.map_aggregate(result, self._promote)
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in ASSERTIONS:
            return None
        if self._float64:
            args = torch.fx.node.map_aggregate(args, self._promote)
            kwargs = torch.fx.node.map_aggregate(kwargs, self._promote)
        if target is aten.alias.default or not self._float64:
            return super().call_function(target, args, kwargs)
        if (own := FLOAT64.get(full_name(target))) is not None:
            return own(*args, **kwargs)
        # Operators without a dtype argument, such as arange and full, would make the default dtype.
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return super().call_function(target, args, kwargs)
        finally:
            torch.set_default_dtype(default)

    def _promote(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.dtype in LOW_FLOATS:
                return value.detach().double()
            if value.dtype in LOW_COMPLEX:
                return value.detach().to(torch.complex128)
            return value
        if isinstance(value, torch.dtype):
            if value in LOW_FLOATS:
                return torch.float64
            return torch.complex128 if value in LOW_COMPLEX else value
        if isinstance(value, torch.fx.GraphModule):
            # The body of a higher-order operator: its nodes are promoted in the same way.
            if value not in self._bodies:
                self._bodies[value] = _Interpreter(
                    value,
                    float64=True,
                    noise=self._noise,
                    watch=None,
                    prefix=f"{self._prefix}{len(self._bodies)}/",
                    times=self._times,
                )
            return self._bodies[value].run
        return value

    def _rounded(self, node: torch.fx.Node, result: Any) -> Any:
        """The result of a node with the errors of one rounding."""
        noise, name = self._noise, f"{self._prefix}{node.name}"
        assert noise is not None, "there is rounding to simulate"
        first = result[0] if isinstance(result, tuple | list) and result else result
        if not isinstance(first, torch.Tensor) or not (first.is_floating_point() or first.is_complex()):
            return result
        if first.itemsize == 1:  # which of so few values it is, is a choice
            return result
        times = self._times[name] = self._times.get(name, -1) + 1
        # A dtype stays as the program has it, for a cast to it rounds.
        values = torch.fx.node.map_arg(arguments(node), lambda operand: self.env[operand])
        call = Call(
            target=node.target,
            identity=(name, times),
            arguments={
                k: v if isinstance(v, torch.dtype) else torch.fx.node.map_aggregate(v, self._promote)
                for k, v in values.items()
            },
            y=array_of(first),
            draw=noise.draw(name, times),
            magnitudes=self._magnitudes,
        )
        return with_rounding(call, result)


def _still(graph: torch.fx.Graph, inputs: Collection[str] | None) -> frozenset[torch.fx.Node]:
    """The nodes that compute sizes and the like; ``inputs``: placeholders that are no weights, or None for all."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    placeholders = {node.name for node in graph.nodes if node.op == "placeholder"}
    steps = [
        ([n.name for n in node.all_input_nodes], [node.name], False, operator_of(node.target) in DECISIONS)
        for node in nodes
    ]
    return frozenset(nodes[i] for i in undisturbed(steps, placeholders if inputs is None else inputs))

"""Which values of an ExportedProgram are constant, and what they are."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import InputKind

if TYPE_CHECKING:
    from torch.export import ExportedProgram


ASSERTIONS = (torch.ops.aten._assert_tensor_metadata.default,)
"""Operators that give nothing and only look at the type or the shape of a value, which the program settles."""


class Constants:
    """Parameters, buffers and constants of a program, and everything that is computed from them alone.

    What the program changes is not constant: a buffer that its signature names, and whatever shares memory with what an
    in-place operator writes to, before the operator or behind it.
    """

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        changed = set(signature.buffers_to_mutate.values())
        # In-place operators that torch.export left in the graph are not in the signature.
        self._written = {node.name for node in changed_in_place(program.graph)}
        self._targets: dict[str, str] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        for spec in signature.input_specs:
            if spec.target is None or spec.target in changed:
                continue
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                name = spec.arg.name
                if name in self._written:
                    continue
                stored = program.state_dict.get(spec.target)
                tensor = program.constants.get(spec.target) if stored is None else stored
                if isinstance(tensor, torch.Tensor):
                    self._targets[name] = spec.target
                    self._tensors[name] = tensor.detach()
        self._constant: dict[str, bool] = {}

    def target(self, node: torch.fx.Node) -> str | None:
        """Return the parameter's or buffer's own name, where the node is one; None where it is computed."""
        return self._targets.get(node.name)

    def is_constant(self, node: Any) -> bool:
        """Return whether a node's value does not depend on the inputs. Plain numbers are constant too."""
        if not isinstance(node, torch.fx.Node):
            return True
        known = self._constant.get(node.name)
        if known is None:
            if node.op == "placeholder":
                known = node.name in self._tensors
            else:
                known = (
                    node.op == "call_function"
                    and node.name not in self._written
                    and isinstance(node.target, torch._ops.OpOverload)
                    and torch.Tag.nondeterministic_seeded not in node.target.tags
                    and not node.target._schema.is_mutable
                    and all(self.is_constant(n) for n in node.all_input_nodes)
                )
            self._constant[node.name] = known
        return known

    def value(self, node: torch.fx.Node) -> torch.Tensor:
        """Return the tensor behind a constant node: a view of the parameter, or the evaluated expression."""
        if node.name in self._tensors:
            return self._tensors[node.name]

        def evaluate(argument: torch.fx.Node) -> Any:
            return self.value(argument)

        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), evaluate)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator,no-any-return]


def is_in_place(node: torch.fx.Node) -> bool:
    """Return whether an operator changes the numbers of one of its operands."""
    schema = getattr(node.target, "_schema", None)
    mutable = getattr(schema, "is_mutable", False)
    return node.op == "call_function" and mutable and node.target is not torch.ops.aten.detach_.default


def changed_in_place(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """Return the nodes whose memory some operator of the graph writes to: what it is given, and what that is a view of.

    A program of torch.export may still hold such operators, and its signature does not tell of them. Other views of the
    same memory are computed from a node that is returned.
    """
    changed: set[torch.fx.Node] = set()
    pending: list[Any] = []
    for node in graph.nodes:
        if is_in_place(node):
            schema = node.target._schema
            given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
            pending += [given.get(a.name) for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    while pending:
        node = pending.pop()
        if isinstance(node, list | tuple):
            pending += node
        elif isinstance(node, torch.fx.Node) and node not in changed:
            changed.add(node)
            returns = getattr(getattr(node.target, "_schema", None), "returns", ())
            # An entry of a list of views, such as split gives, is a view as well.
            if node.target is operator.getitem or any(value.alias_info is not None for value in returns):
                pending += node.all_input_nodes
    return changed

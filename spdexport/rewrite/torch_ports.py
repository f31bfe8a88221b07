"""The inputs and outputs of a program that grows further ones: its signature with them at the end.

Inputs are keywords behind those that the program has. Outputs are a dict behind the program's own result: the new one
returns ``(result, {name: tensor})``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch.export import ExportedProgram, ModuleCallEntry


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewInput:
    """A keyword that a program gets.

    Attributes:
        keyword: Its name.
        node: The placeholder.
        example: A value for the program's example inputs.
    """

    keyword: str
    node: torch.fx.Node
    example: torch.Tensor


def input_spec(new: NewInput) -> InputSpec:
    """Return the new input in a graph's signature."""
    return InputSpec(InputKind.USER_INPUT, TensorArgument(name=new.node.name), None)


def output_specs(outputs: Mapping[str, torch.fx.Node]) -> list[OutputSpec]:
    """Return the new outputs in a graph's signature."""
    return [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None) for node in outputs.values()]


def with_ports(
    calls: list[ModuleCallEntry], inputs: Sequence[NewInput], outputs: Mapping[str, torch.fx.Node]
) -> list[ModuleCallEntry]:
    """Return the calls of a program with the new inputs and outputs in the call of the whole."""
    if not inputs and not outputs:
        return calls
    root, *others = calls
    signature = root.signature
    assert signature is not None, "the call of the whole program has a signature"
    args, kwargs = pytree.tree_unflatten([0] * signature.in_spec.num_leaves, signature.in_spec)
    in_spec = pytree.tree_structure((args, {**kwargs, **dict.fromkeys((new.keyword for new in inputs), 0)}))
    out_spec = signature.out_spec
    if outputs:
        result = pytree.tree_unflatten([0] * out_spec.num_leaves, out_spec)
        out_spec = pytree.tree_structure((result, dict.fromkeys(outputs, 0)))
    names = signature.forward_arg_names
    changed = replace(
        signature,
        inputs=[*signature.inputs, *(TensorArgument(name=new.node.name) for new in inputs)],
        outputs=[*signature.outputs, *(TensorArgument(name=node.name) for node in outputs.values())],
        in_spec=in_spec,
        out_spec=out_spec,
        forward_arg_names=None if names is None else [*names, *(new.keyword for new in inputs)],
    )
    return [replace(root, signature=changed), *others]


def with_examples(program: ExportedProgram, inputs: Sequence[NewInput]) -> Any:
    """Return the program's example inputs with the new ones; None where it has none."""
    if program.example_inputs is None or not inputs:
        return program.example_inputs
    args, kwargs = program.example_inputs
    return args, {**kwargs, **{new.keyword: new.example for new in inputs}}

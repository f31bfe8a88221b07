"""A new ExportedProgram from an old one, by changes to a copy of its graph.

The graph is copied node by node, so that names, metadata and symbolic shapes stay as they were, and the module is not
traced again.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument

from spdexport.arrays import to_torch
from spdexport.rewrite.constants import ASSERTIONS
from spdexport.rewrite.torch_graph import operands
from spdexport.rewrite.torch_ports import NewInput, input_spec, output_specs, with_examples, with_ports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.conv import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stored:
    """A new parameter or buffer: the name asked for, its placeholder and its content."""

    name: str
    node: torch.fx.Node
    tensor: torch.Tensor
    kind: InputKind


class ProgramEdit:
    """A copy of a program's graph while nodes and parameters are put into it; the program itself is not changed.

    Attributes:
        graph: The copy, to be changed.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self.graph = torch.fx.Graph()
        values: dict[torch.fx.Node, torch.fx.Node] = {}
        self.graph.graph_copy(program.graph, values)
        for old, new in values.items():
            # A copy is renamed where the name is that of a Python builtin, such as `input`.
            new.name = old.name
        old_output = program.graph.output_node()
        result = self.graph.output(torch.fx.node.map_arg(old_output.args[0], values.__getitem__))
        result.meta = dict(old_output.meta)
        self._nodes = {old.name: new for old, new in values.items()}
        self._was_used = {node.name for node in program.graph.nodes if node.users}
        self._fake_mode = next(
            (n.meta["val"].fake_mode for n in self.graph.nodes if hasattr(n.meta.get("val"), "fake_mode")), None
        )
        self._new: list[_Stored] = []
        self._inputs: dict[str, NewInput] = {}
        self._outputs: dict[str, torch.fx.Node] = {}
        self._dropped: set[torch.fx.Node] = set()

    def node(self, name: str) -> torch.fx.Node:
        """Return the copy of the program's node of that name."""
        return self._nodes[name]

    @property
    def batch(self) -> Any:
        """Axis 0 of the program's first input that has axes, a number or a symbol; None where none has."""
        names = self._program.graph_signature.user_inputs
        values = [self._nodes[name].meta.get("val") for name in names if isinstance(name, str)]
        return next((v.shape[0] for v in values if isinstance(v, torch.Tensor) and v.ndim), None)

    def call(self, target: Any, args: tuple[Any, ...], like: torch.fx.Node, suffix: str) -> torch.fx.Node:
        """Return a new call with the metadata of the node it helps to replace, and a fake value of its own."""
        node = self.graph.create_node("call_function", target, args, name=f"{like.name}_{suffix}")
        node.meta = {k: v for k, v in like.meta.items() if k != "val"}
        assert self._fake_mode is not None, "a program with a layer has fake values"
        shapes = self._fake_mode.shape_env
        # Convolutions look at sizes to choose a kernel, and each look would leave a guard such as batch < 16.
        with self._fake_mode, contextlib.nullcontext() if shapes is None else shapes.suppress_guards():
            node.meta["val"] = _fake_result(target, torch.fx.node.map_arg(args, lambda n: n.meta["val"]))
        return node

    def store(self, name: str, values: Array, kind: InputKind, anchor: torch.fx.Node) -> torch.fx.Node:
        """Return the placeholder of a new parameter or buffer.

        Args:
            name: The name it is to have; where that is taken in the end, the nearest that is free. The same name with
                the same numbers is stored once.
            values: Its content, of the dtype it is to have; it is stored on the device of the anchor's value.
            kind: ``PARAMETER`` or ``BUFFER``.
            anchor: The placeholder before which it is put; any other node stands for the first placeholder.
        """
        value = anchor.meta.get("val")
        tensor = to_torch(values)
        if isinstance(value, torch.Tensor):
            tensor = tensor.to(value.device)
        for stored in self._new:
            if stored.name == name and stored.kind is kind and torch.equal(stored.tensor, tensor):
                return stored.node
        if anchor.op != "placeholder":
            anchor = next(n for n in self.graph.nodes if n.op == "placeholder")
        with self.graph.inserting_before(anchor):
            prefix = "p_" if kind is InputKind.PARAMETER else "b_"
            node = self.graph.placeholder(prefix + re.sub(r"\W", "_", name).lower())
        # The signature finds a placeholder by its name, so the two must agree where the name was made unique.
        node.target = node.name
        assert self._fake_mode is not None, "a program with a layer has fake values"
        node.meta["val"] = self._fake_mode.from_tensor(tensor, static_shapes=True)
        self._new.append(_Stored(name=name, node=node, tensor=tensor, kind=kind))
        return node

    def add_input(self, keyword: str, shape: tuple[Any, ...], dtype: torch.dtype) -> torch.fx.Node:
        """Return the placeholder of a new keyword of the program, behind all that it has.

        Of ones in its example inputs.

        Args:
            keyword: An identifier; the same one again gives the same placeholder.
            shape: Its sizes, some perhaps symbols of the program's own.
            dtype: Its dtype.

        Raises:
            ValueError: The program has an input of that name, or the same keyword was asked for with another shape.
        """
        if keyword in self._inputs:
            known = self._inputs[keyword].node
            # As text, for comparing symbols with numbers would leave a guard.
            before, now = (tuple(map(str, sizes)) for sizes in (known.meta["val"].shape, shape))
            if before != now:
                raise ValueError(f"one call needs ({', '.join(before)}), and another ({', '.join(now)})")
            return known
        if any(node.name == keyword for node in self.graph.nodes):
            raise ValueError(f"the model has a value called {keyword}")
        last = [node for node in self.graph.nodes if node.op == "placeholder"][-1]
        with self.graph.inserting_after(last):
            node = self.graph.placeholder(keyword)
        assert self._fake_mode is not None, "a program with a layer has fake values"
        with self._fake_mode:
            node.meta["val"] = torch.empty(shape, dtype=dtype)
        sizes = [int(size.node.hint) if isinstance(size, torch.SymInt) else size for size in shape]
        self._inputs[keyword] = NewInput(keyword=keyword, node=node, example=torch.ones(sizes, dtype=dtype))
        return node

    def add_output(self, name: str, value: torch.fx.Node, sizes: tuple[Any, ...]) -> None:  # noqa: ARG002
        """Give a value out beside the program's own result, under a name; torch knows its sizes."""
        self._outputs[name] = value

    def is_plain(self, size: Any) -> bool:
        """Return whether a size is a number or an axis of an input, rather than computed from one."""
        return not isinstance(size, torch.SymInt) or bool(size.node.expr.is_Symbol)

    def outermost(self, node: torch.fx.Node) -> torch.fx.Node:
        """Return the node itself: layers inside of others are not listed."""
        return node

    def nodes(self) -> list[torch.fx.Node]:
        """Return all nodes in their order."""
        return list(self.graph.nodes)

    def sources(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        """Return the nodes that a node reads of."""
        return node.all_input_nodes

    def input_of(self, node: torch.fx.Node) -> torch.fx.Node:
        """Return what the node of a layer reads beside its weights."""
        data: torch.fx.Node = operands(node).data
        return data

    def is_computed(self, node: torch.fx.Node) -> bool:
        """Return whether a node is no placeholder or output."""
        return node.op == "call_function"

    def unrepeatable(self, node: torch.fx.Node) -> str | None:
        """Return why a node cannot run twice; None where it can."""
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
            return f"{target} twice, which changes a value in place"
        return None

    def node_name(self, node: torch.fx.Node) -> str:
        """Return the node's name."""
        return node.name

    def copy(
        self,
        node: torch.fx.Node,
        copies: Mapping[torch.fx.Node, torch.fx.Node],
        before: torch.fx.Node,
        suffix: str = "dense",
    ) -> torch.fx.Node:
        """Insert a second node that does the same on other values: those that its inputs are mapped to, or the same."""
        with self.graph.inserting_before(before):
            new = self.graph.node_copy(node, lambda n: copies.get(n, n))
        new.name = f"{node.name}_{suffix}"
        return new

    def move(self, node: torch.fx.Node, before: torch.fx.Node) -> None:
        """Put a node in front of another one."""
        before.prepend(node)

    def copied(self, value: torch.fx.Node, copies: Mapping[torch.fx.Node, torch.fx.Node]) -> torch.fx.Node:
        """Return the same value of a node's copy; the value itself where its node has none."""
        return copies.get(value, value)

    def drop_unused(self, node: torch.fx.Node) -> None:
        """Remove a node that nothing uses but assertions, and what only it used.

        Placeholders go when the edit is finished.
        """
        users = list(node.users)
        if node.op == "placeholder" or node in self._dropped or any(user.target not in ASSERTIONS for user in users):
            return
        for user in users:
            self.graph.erase_node(user)
        inputs = node.all_input_nodes
        self._dropped.add(node)
        self.graph.erase_node(node)
        for source in inputs:
            self.drop_unused(source)

    def finish(self) -> ExportedProgram:
        """Return the new program; the parameters that only replaced layers used are gone from it."""
        program = self._program
        old = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        new = {stored.node.name: stored for stored in self._new}
        kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
        changed = set(program.graph_signature.buffers_to_mutate.values())
        kept_targets: set[str] = set()
        for node in [n for n in self.graph.nodes if n.op == "placeholder"]:
            spec = old.get(node.name)
            if spec is None or spec.target is None:
                continue
            # Only what lost its last user here: a parameter that nothing used before stays as it was.
            lost = not node.users and node.name in self._was_used
            if lost and spec.kind in kinds and spec.target not in changed:
                self.graph.erase_node(node)
                continue
            kept_targets.add(spec.target)

        inputs, outputs = list(self._inputs.values()), self._outputs
        added = {new.node.name: input_spec(new) for new in inputs}
        specs: list[InputSpec] = []
        state_dict = {name: t for name, t in program.state_dict.items() if name in kept_targets}
        constants = {
            name: value
            for name, value in program.constants.items()
            if name in kept_targets or not isinstance(value, torch.Tensor)
        }
        for node in (n for n in self.graph.nodes if n.op == "placeholder"):
            if node.name in new:
                stored = new[node.name]
                is_buffer = stored.kind is InputKind.BUFFER
                target = _free_target(stored.name, {*state_dict, *constants})
                tensor = stored.tensor
                state_dict[target] = tensor if is_buffer else torch.nn.Parameter(tensor, requires_grad=False)
                persistent = True if is_buffer else None
                specs.append(InputSpec(stored.kind, TensorArgument(name=node.name), target, persistent))
            elif node.name in added:
                specs.append(added[node.name])
            else:
                specs.append(old[node.name])
        if outputs:
            result = self.graph.output_node()
            values: Any = result.args[0]
            result.args = ((*values, *outputs.values()),)
        self.graph.lint()
        return ExportedProgram(
            root=program.graph_module,
            graph=self.graph,
            graph_signature=ExportGraphSignature(
                specs, [*program.graph_signature.output_specs, *output_specs(outputs)]
            ),
            state_dict=state_dict,
            range_constraints=program.range_constraints,
            module_call_graph=with_ports(program.module_call_graph, inputs, outputs),
            example_inputs=with_examples(program, inputs),
            constants=constants,
            verifiers=program.verifiers,
        )


def _fake_result(target: Any, args: tuple[Any, ...]) -> torch.Tensor:
    """What an operator gives for fake values."""
    if not any(isinstance(value, str) and value == "same" for value in args):
        result: torch.Tensor = target(*args)
        return result
    # Where the padding is unequal, the operator would turn a symbolic batch into the number that was traced with.
    x, weight = args[:2]
    shape = list(x.shape)
    shape[1 - weight.ndim] = weight.shape[0]
    like: torch.Tensor = x.new_empty(shape)
    return like


def _free_target(name: str, taken: set[str]) -> str:
    """The name, or the nearest to it that neither is taken nor would need a tensor to have attributes."""
    candidate, count = name, 1
    while any(t == candidate or t.startswith(candidate + ".") or candidate.startswith(t + ".") for t in taken):
        layer, _, part = name.rpartition(".")
        candidate, count = f"{layer}_factors{count if count > 1 else ''}.{part}", count + 1
    return candidate

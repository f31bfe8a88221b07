"""Put forms in the places of convolutions: a new ExportedProgram from an old one.

The graph is copied node by node, so that names, metadata and symbolic shapes stay as they were, and the module is not
traced again. The last operation of a form takes over the node of the convolution it replaces, with its name and users.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument

from spdexport.arrays import to_torch
from spdexport.names import layer_of_call

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spdexport.conv import Array, ConvSite, ConvSpec
    from spdexport.forms import Chain, Form, Stage

aten = torch.ops.aten
CONVOLUTION = {1: aten.conv1d, 2: aten.conv2d, 3: aten.conv3d}


def place_forms(program: ExportedProgram, forms: Iterable[tuple[ConvSite, Form]]) -> ExportedProgram:
    """A new program in which each site has taken its form; the argument is not changed.

    Parameters are named after the layer: ``<layer>.V``, ``<layer>.U``, ``<layer>.mask``, ``<layer>.delta``. Tensors of
    untouched layers are shared with the argument, not copied. Forms are taken one at a time, so an iterator that makes
    them as it goes keeps one layer's arrays in memory beside the program's.

    Args:
        program: The traced program.
        forms: Sites of this very program, each with the form it takes; stage weights in the site's dtype.
    """
    edit = _Edit(program)
    for site, form in forms:
        edit.place(site, form)
    return edit.finish()


class _Edit:
    """A copy of a program's graph while forms are put into it."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._graph = torch.fx.Graph()
        values: dict[torch.fx.Node, torch.fx.Node] = {}
        self._graph.graph_copy(program.graph, values)
        for old, new in values.items():
            # A copy is renamed where the name is that of a Python builtin, such as `input`.
            new.name = old.name
        old_output = program.graph.output_node()
        result = self._graph.output(torch.fx.node.map_arg(old_output.args[0], values.__getitem__))
        result.meta = dict(old_output.meta)
        self._nodes = {old.name: new for old, new in values.items()}
        self._fake_mode = next(
            n.meta["val"].fake_mode for n in self._graph.nodes if hasattr(n.meta.get("val"), "fake_mode")
        )
        self._first_input = next(n for n in self._graph.nodes if n.op == "placeholder")
        self._new: dict[str, tuple[torch.fx.Node, torch.Tensor, InputKind]] = {}

    def place(self, site: ConvSite, form: Form) -> None:
        """Build the form in front of the site's node, and let that node become the form's last operation."""
        node = self._nodes[site.node]
        layer = layer_of_call(site.name)
        x, weight, bias = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        assert isinstance(weight, torch.fx.Node)
        anchor = weight if weight.op == "placeholder" else self._first_input

        with self._graph.inserting_before(node):
            terms = [self._chain_calls(chain, x, node, site, bias, layer, anchor) for chain in form.chains]
            if len(terms) == 1:
                target, args = terms[0]
            else:
                total, *others = (
                    self._call(t, a, node, c[-1].name) for (t, a), c in zip(terms, form.chains, strict=True)
                )
                for value in others[:-1]:
                    total = self._call(aten.add.Tensor, (total, value), node, "sum")
                target, args = aten.add.Tensor, (total, others[-1])
        node.target, node.args = target, args
        node.kwargs = {}
        self._drop_unused(weight)

    def _chain_calls(
        self,
        chain: Chain,
        x: Any,
        node: torch.fx.Node,
        site: ConvSite,
        bias: Any,
        layer: str,
        anchor: torch.fx.Node,
    ) -> tuple[Any, tuple[Any, ...]]:
        """Build all of a chain but its last operation; gives that one as operator and arguments."""
        pending: tuple[Any, tuple[Any, ...]] | None = None
        name = ""
        for stage in chain:
            if pending is not None:
                x = self._call(*pending, node, name)
            pending, name = self._stage_call(x, stage, site, bias, layer, anchor), stage.name
            if stage.mask is not None:
                x = self._call(*pending, node, name)
                mask = stage.mask.reshape(-1, *(1,) * site.spec.axes)
                parameter = self._parameter(f"{layer}.mask", mask, InputKind.BUFFER, anchor, site)
                pending, name = (aten.mul.Tensor, (x, parameter)), "mask"
        assert pending is not None, "a chain has at least one stage"
        return pending

    def _stage_call(
        self, x: Any, stage: Stage, site: ConvSite, bias: Any, layer: str, anchor: torch.fx.Node
    ) -> tuple[Any, tuple[Any, ...]]:
        """The operator and arguments of one stage, on the value ``x``."""
        weight = self._parameter(f"{layer}.{stage.name}", stage.weight, InputKind.PARAMETER, anchor, site)
        added: Any = None
        if stage.bias is not None:
            # The layer's own bias stays the node that it was, computed or shared as it may be.
            added = (
                bias
                if stage.bias is site.bias
                else self._parameter(f"{layer}.bias", stage.bias, InputKind.PARAMETER, anchor, site)
            )
        if stage.spec.axes == 0:
            return aten.linear.default, (x, weight, added)
        target, padding = _padding(stage.spec)
        stride, dilation = list(stage.spec.stride), list(stage.spec.dilation)
        return target, (x, weight, added, stride, padding, dilation, stage.spec.groups)

    def _call(self, target: Any, args: tuple[Any, ...], like: torch.fx.Node, suffix: str) -> torch.fx.Node:
        """A new call with the metadata of the node it helps to replace, and a fake value of its own."""
        node = self._graph.create_node("call_function", target, args, name=f"{like.name}_{suffix}")
        node.meta = {k: v for k, v in like.meta.items() if k != "val"}
        with self._fake_mode:
            node.meta["val"] = target(*torch.fx.node.map_arg(args, lambda n: n.meta["val"]))
        return node

    def _parameter(
        self, name: str, values: Array, kind: InputKind, anchor: torch.fx.Node, site: ConvSite
    ) -> torch.fx.Node:
        """The placeholder of a new parameter or buffer; a further call of the same layer gets the one it has."""
        if name in self._new:
            return self._new[name][0]
        tensor = to_torch(values.astype(site.weight.dtype, copy=False))
        with self._graph.inserting_before(anchor):
            prefix = "p_" if kind is InputKind.PARAMETER else "b_"
            node = self._graph.placeholder(prefix + re.sub(r"\W", "_", name).lower())
        # The signature finds a placeholder by its name, so the two must agree where the name was made unique.
        node.target = node.name
        node.meta["val"] = self._fake_mode.from_tensor(tensor, static_shapes=True)
        self._new[name] = (node, tensor, kind)
        return node

    def _drop_unused(self, node: torch.fx.Node) -> None:
        """Remove a weight's computation where nothing uses it any more; placeholders go when the edit is finished."""
        if node.users or node.op == "placeholder":
            return
        inputs = node.all_input_nodes
        self._graph.erase_node(node)
        for source in inputs:
            self._drop_unused(source)

    def finish(self) -> ExportedProgram:
        """The new program; the parameters that only replaced layers used are gone from it."""
        program = self._program
        old = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        new = {node.name: (name, tensor, kind) for name, (node, tensor, kind) in self._new.items()}
        stored = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
        changed = set(program.graph_signature.buffers_to_mutate.values())
        kept_targets: set[str] = set()
        for node in [n for n in self._graph.nodes if n.op == "placeholder"]:
            spec = old.get(node.name)
            if spec is None or spec.target is None:
                continue
            # Only what lost its last user here: a parameter that nothing used before stays as it was.
            lost = not node.users and _was_used(program, node.name)
            if lost and spec.kind in stored and spec.target not in changed:
                self._graph.erase_node(node)
                continue
            kept_targets.add(spec.target)

        specs: list[InputSpec] = []
        state_dict = {name: t for name, t in program.state_dict.items() if name in kept_targets}
        constants = {
            name: value
            for name, value in program.constants.items()
            if name in kept_targets or not isinstance(value, torch.Tensor)
        }
        for node in (n for n in self._graph.nodes if n.op == "placeholder"):
            if node.name in new:
                name, tensor, kind = new[node.name]
                target = _free_target(name, {*state_dict, *constants})
                state_dict[target] = (
                    torch.nn.Parameter(tensor, requires_grad=False) if kind is InputKind.PARAMETER else tensor
                )
                persistent = True if kind is InputKind.BUFFER else None
                specs.append(InputSpec(kind, TensorArgument(name=node.name), target, persistent))
            else:
                specs.append(old[node.name])
        self._graph.lint()
        return ExportedProgram(
            root=program.graph_module,
            graph=self._graph,
            graph_signature=ExportGraphSignature(specs, list(program.graph_signature.output_specs)),
            state_dict=state_dict,
            range_constraints=program.range_constraints,
            module_call_graph=program.module_call_graph,
            example_inputs=program.example_inputs,
            constants=constants,
            verifiers=program.verifiers,
        )


def _padding(spec: ConvSpec) -> tuple[Any, list[int] | str]:
    """The overload for a spec's padding; only ``same`` pads unequally, and V, with the same kernel, pads like it."""
    family = CONVOLUTION[spec.axes]
    if all(before == after for before, after in spec.padding):
        return family.default, [before for before, _ in spec.padding]
    return family.padding, "same"


def _was_used(program: ExportedProgram, placeholder: str) -> bool:
    return any(n.name == placeholder and n.users for n in program.graph.nodes)


def _free_target(name: str, taken: set[str]) -> str:
    """The name, or the nearest to it that neither is taken nor would need a tensor to have attributes."""
    candidate, count = name, 1
    while any(t == candidate or t.startswith(candidate + ".") or candidate.startswith(t + ".") for t in taken):
        layer, _, part = name.rpartition(".")
        candidate, count = f"{layer}_factors{count if count > 1 else ''}.{part}", count + 1
    return candidate

"""What an ONNX model means, computed in float64.

ONNX Runtime's CPU provider has no float64 convolution, so the reference is onnx's own evaluator, with three changes:

1. Every tensor of floats is float64: inputs, initializers, constants, and what casts to a smaller float would give.
   Attributes keep the float32 values that the file stores.
2. Operators whose reference is slow, computes in float32 inside or is wrong are replaced (`onnx_operators`,
   `onnx_windows`).
3. Memory: a weight is promoted when its node runs, and each intermediate is dropped after its last use.

The same evaluator adds seeded rounding noise, from which a tolerance is measured.
"""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpFunction, RuntimeContextError

from spdexport.errors import ExampleInputError, first_line
from spdexport.reference.decisions import Decide, Decision
from spdexport.reference.decisions_table import has_rule
from spdexport.reference.noise import Magnitudes, Noise, undisturbed
from spdexport.reference.onnx_bounds import Allowance, BeyondLimitError, check_output
from spdexport.reference.onnx_legacy import LEGACY_OPERATORS
from spdexport.reference.onnx_microsoft import MICROSOFT_OPERATORS
from spdexport.reference.onnx_microsoft_quantized import MICROSOFT_QUANTIZED
from spdexport.reference.onnx_operators import OPERATORS, promote
from spdexport.reference.onnx_quantized import QUANTIZED_OPERATORS
from spdexport.reference.onnx_recurrent import RECURRENT_OPERATORS
from spdexport.reference.onnx_resize import RESIZE_OPERATORS
from spdexport.reference.onnx_windows import WINDOW_OPERATORS
from spdexport.reference.rounding_call import Call
from spdexport.reference.rounding_onnx import DECISIONS, EXACT, SHAPES, with_rounding
from spdexport.reference.unavailable import ReferenceUnavailable, check_computed, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from spdexport.conv import Array

RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
# onnx's reference computes these in float32, whatever it is given.
FLOAT32_ONLY = ("CausalConvWithState", "LinearAttention")
_OPERATORS = [
    *LEGACY_OPERATORS,
    *MICROSOFT_OPERATORS,
    *MICROSOFT_QUANTIZED,
    *OPERATORS,
    *QUANTIZED_OPERATORS,
    *RECURRENT_OPERATORS,
    *RESIZE_OPERATORS,
    *WINDOW_OPERATORS,
]


class OnnxReference:
    """A float64 evaluator of one model.

    Args:
        model: The model, not changed and not copied. Its weights may be on disk as external data.
        base_dir: The folder of external data; needed only if the model was loaded without it.
        is_partial: Whether a node that cannot be computed hides what depends on it, and nothing else.

    Attributes:
        hidden: The values that the last run did not compute, by the node that hides them; empty unless partial.

    Raises:
        ReferenceUnavailable: The model has a node that no reference is known for, and is not to be evaluated in part.
    """

    def __init__(self, model: onnx.ModelProto, base_dir: Path | None = None, *, is_partial: bool = False) -> None:
        self._base_dir = "" if base_dir is None else str(base_dir)
        self._is_partial = is_partial
        self.hidden: Mapping[str, ReferenceUnavailable] = {}
        token = _PARTIAL.set(is_partial)
        try:
            self._evaluator = _Evaluator(model)
        except ReferenceUnavailable:
            raise
        except Exception as error:  # onnx reads all attributes at once, and raises whatever it trips over
            raise ReferenceUnavailable("the graph", model.graph.name, first_line(error)) from error
        finally:
            _PARTIAL.reset(token)
        with_default = {tensor.name for tensor in model.graph.initializer}
        self._required = [value.name for value in model.graph.input if value.name not in with_default]
        self._accepted = {value.name for value in model.graph.input}

    def run(
        self,
        inputs: Mapping[str, Array],
        *,
        noise: Noise | None = None,
        watch: Callable[[str, Array], None] | None = None,
        decide: Decide | None = None,
        replaced: Mapping[str, Callable[[Array], Array]] | None = None,
    ) -> dict[str, Array]:
        """Return the model's outputs: float64 where the file has a float of up to 32 bits, else of the file's dtype.

        Args:
            inputs: An array for each input without a default, floats of any width.
            noise: Rounding noise to add, in subgraphs and functions too.
            watch: Called with the name and array of each node's outputs as they come, in the bodies of If, Loop and
                Scan at each step, with what these take. Nodes inside functions are not watched, for their names are
                not the model's.
            decide: Told each node that chooses, in subgraphs and functions too; what it gives takes the place of the
                node's outputs.
            replaced: What computes a value of the main graph or of a body, by its name, in the place of its node: given
                the node's first input, it returns the value.

        Returns:
            The outputs by name, in the model's order; without those that are hidden.

        Raises:
            ExampleInputError: An input is missing, or is not one of the model's.
            ReferenceUnavailable: A node cannot be computed on these inputs.
        """
        missing = [name for name in self._required if name not in inputs]
        unknown = [name for name in inputs if name not in self._accepted]
        if missing or unknown:
            what = f"lack {', '.join(missing)}" if missing else f"have {', '.join(unknown)}, which the model does not"
            raise ExampleInputError(
                f"The inputs {what}.",
                where=f"inputs {', '.join(inputs) or '(none)'}",
                hint=f"Give the model its inputs: {', '.join(sorted(self._accepted))}.",
            )
        run = _Evaluation(self._evaluator, self._base_dir, noise, watch, decide, is_partial=self._is_partial)
        run.replaced = replaced or {}
        token = _RUN.set(run)
        try:
            values = self._evaluator.run(None, {name: promote(value) for name, value in inputs.items()})
        finally:
            _RUN.reset(token)
        self.hidden = run.hidden
        found = zip(self._evaluator.output_names, values, strict=True)
        return {name: value for name, value in found if not isinstance(value, ReferenceUnavailable)}


class _Evaluation:
    """What all evaluators of one call of `OnnxReference.run` share."""

    def __init__(
        self,
        top: _Evaluator,
        base_dir: str,
        noise: Noise | None,
        watch: Callable[[str, Array], None] | None,
        decide: Decide | None,
        *,
        is_partial: bool = False,
    ) -> None:
        self.decide = decide
        self.replaced: Mapping[str, Callable[[Array], Array]] = {}
        self.top = top
        self.is_partial = is_partial
        self.hidden: dict[str, ReferenceUnavailable] = {}
        self.base_dir = base_dir
        self.noise = noise
        self.watch = watch
        self.allowance = Allowance()
        self.magnitudes = (noise and noise.magnitudes) or Magnitudes(0)
        self._times: dict[str, int] = {}

    def count(self, node: str) -> int:
        """Return how often a node ran before, this call not counted."""
        times = self._times[node] = self._times.get(node, -1) + 1
        return times


# onnx makes the evaluators of subgraphs and functions itself and runs them without a word of ours: this is how they
# learn of the run they are part of.
_RUN: contextvars.ContextVar[_Evaluation] = contextvars.ContextVar("run")
_IN_FUNCTION: contextvars.ContextVar[bool] = contextvars.ContextVar("in_function", default=False)
"""Whether the evaluator that is made is that of a function, or of a body in one."""
_PARTIAL: contextvars.ContextVar[bool] = contextvars.ContextVar("partial", default=False)
"""Whether nodes without a reference are to be loaded all the same."""


class _Evaluator(ReferenceEvaluator):
    """onnx's evaluator with lazy weights, early release, noise, and float64 throughout; for every level of a model."""

    def __init__(self, proto: Any, **settings: Any) -> None:
        # Functions are given no operators by onnx, and subgraphs those of their parent: all get the same here.
        settings["new_ops"] = _OPERATORS
        self._is_function = _IN_FUNCTION.get() or isinstance(proto, onnx.FunctionProto)
        token = _IN_FUNCTION.set(self._is_function)
        try:
            super().__init__(proto, **settings)
        finally:
            _IN_FUNCTION.reset(token)

    def _init(self) -> None:
        """Loads the operators, and leaves the weights where they are."""
        tensors, self.inits_ = self.inits_, []
        for tensor in tensors:
            if isinstance(tensor, onnx.SparseTensorProto):
                raise ReferenceUnavailable("a sparse initializer", tensor.values.name, "only dense ones are read")
        super()._init()
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._captured = [_captured_by(node.onnx_node) for node in self.rt_nodes_]
        self._still = self._undisturbed()
        last = {name: index for index, node in enumerate(self.rt_nodes_) for name in node.output}
        for index, node in enumerate(self.rt_nodes_):
            last.update(dict.fromkeys([*node.input, *self._captured[index]], index))
        self._expiring: list[list[str]] = [[] for _ in self.rt_nodes_]
        for name, index in last.items():
            if name and name not in self.output_names_:
                self._expiring[index].append(name)

    def _undisturbed(self) -> frozenset[int]:
        """The nodes that compute sizes and the like; what a subgraph takes from around it may depend on the inputs."""
        nodes = [
            ([*node.input, *captured], list(node.output), node.op_type in SHAPES, node.op_type in DECISIONS)
            for node, captured in zip(self.rt_nodes_, self._captured, strict=True)
        ]
        own = {name for _, gives, _, _ in nodes for name in gives} | set(self._tensors)
        return undisturbed(nodes, {name for reads, *_ in nodes for name in reads if name} - own)

    def _load_impl(self, node: onnx.NodeProto, input_types: Any = None) -> Any:
        try:
            return self._known(node, input_types)
        except ReferenceUnavailable as error:
            if not _PARTIAL.get():
                raise
            return missing(error)

    def _known(self, node: onnx.NodeProto, input_types: Any) -> Any:
        """The class of an operator.

        Raises:
            ReferenceUnavailable: There is none.
        """
        if node.op_type in RANDOM and not node.domain:
            raise ReferenceUnavailable(*_identity(node), "its output is random", is_missing=True)
        if node.op_type in FLOAT32_ONLY and not node.domain:
            reason = "onnx's reference has it in float32 only"
            raise ReferenceUnavailable(*_identity(node), reason, is_missing=True)
        try:
            return super()._load_impl(node, input_types)
        except RuntimeContextError:
            raise  # not a failure: onnx asks again when the types of the inputs are known
        except (RuntimeError, ValueError) as error:
            reason = "no definition of it is known" if node.domain else str(error).splitlines()[0]
            raise ReferenceUnavailable(*_identity(node), reason, is_missing=True) from error

    def run(  # type: ignore[override]  # of the other options of onnx's own, none reaches us
        self,
        output_names: Sequence[str] | None,
        feed_inputs: dict[str, Any],
        attributes: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Return the outputs; onnx's own If, Loop, Scan and functions call it too."""
        run = _RUN.get()
        watch = None if self._is_function else run.watch
        if self is not run.top:
            run.allowance.enter(len(self.rt_nodes_))
        version = self.opsets_.get("", 0)
        values: dict[str, Any] = {"": None, **feed_inputs}
        if watch is not None and self is not run.top:
            for name in self.input_names:
                if isinstance(feed_inputs.get(name), np.ndarray):
                    watch(name, feed_inputs[name])
        steps = zip(self.rt_nodes_, self._captured, self._expiring, strict=True)
        for index, (node, captured, expiring) in enumerate(steps):
            replaced = None if self._is_function else run.replaced.get(node.output[0])
            settings: dict[str, Any] = {}
            if node.has_linked_attribute and attributes:
                settings["linked_attributes"] = attributes
            if node.need_context():
                settings["context"] = {name: self._value(name, values, run) for name in captured}
            arguments = [self._value(name, values, run) for name in node.input]
            try:
                check_computed([*arguments, *settings.get("context", {}).values()])
                outputs: list[Any]
                if replaced is not None:
                    outputs = [replaced(arguments[0])]
                else:
                    outputs = _compute(node, arguments, settings, version)
                    if run.noise is not None and index not in self._still:
                        outputs = _with_noise(node, arguments, settings, outputs, run, version)
                if run.decide is not None and has_rule(node.onnx_node.domain, node.op_type):
                    decision = _decision(node, arguments, settings, outputs, version, is_inner=self is not run.top)
                    outputs = list(run.decide(decision) or outputs)
            except ReferenceUnavailable as error:
                if not (run.is_partial and error.is_missing and self is run.top):
                    raise
                outputs = [error] * len(node.output)
                run.hidden.update(dict.fromkeys(node.output, error))
            for name, value in zip(node.output, outputs, strict=False):
                if name:
                    values[name] = value
                    if watch is not None and isinstance(value, np.ndarray):
                        watch(name, value)
            for name in expiring:
                values.pop(name, None)
        return [self._value(name, values, run) for name in output_names or self.output_names_]

    def _value(self, name: str, values: dict[str, Any], run: _Evaluation) -> Any:
        if name in values:
            return values[name]
        return promote(onnx.numpy_helper.to_array(self._tensors[name], run.base_dir))


def _identity(node: onnx.NodeProto) -> tuple[str, str]:
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return op, node.name or next(iter(node.output), "")


def _compute(node: Any, arguments: Sequence[Any], settings: dict[str, Any], version: int) -> list[Any]:
    try:
        if not node.onnx_node.domain:
            check_output(node.onnx_node, version, arguments)
        with np.errstate(all="ignore"):  # infinities and NaN are results here, and compared as such
            return [promote(value) for value in node.run(*arguments, **settings)]
    except ReferenceUnavailable:
        raise
    except BeyondLimitError as error:
        raise ReferenceUnavailable(*_identity(node.onnx_node), str(error), is_beyond=True) from error
    except MemoryError as error:
        reason = "it needs more memory than there is"
        raise ReferenceUnavailable(*_identity(node.onnx_node), reason, is_beyond=True) from error
    except Exception as error:  # the operators of onnx raise whatever numpy or their own code comes to
        cause = error.__cause__ or error  # onnx wraps errors in one that only lists Python types
        if isinstance(cause, NotImplementedError):
            raise ReferenceUnavailable(*_identity(node.onnx_node), str(cause), is_missing=True) from error
        reason = f"{type(cause).__name__}: {cause}"
        raise ReferenceUnavailable(*_identity(node.onnx_node), reason) from error


def _decision(
    node: Any,
    arguments: Sequence[Any],
    settings: dict[str, Any],
    outputs: Sequence[Any],
    version: int,
    *,
    is_inner: bool,
) -> Decision:
    """A node that chooses, as rules see it."""
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.onnx_node.attribute}
    return Decision(
        op=node.op_type,
        name=_identity(node.onnx_node)[1],
        inputs=tuple(arguments),
        outputs=tuple(outputs),
        output_names=tuple(node.output),
        attributes={name: v.decode() if isinstance(v, bytes) else v for name, v in found.items()},
        compute=lambda inputs: _compute(node, inputs, settings, version),
        version=version,
        is_inner=is_inner,
    )


def _with_noise(
    node: Any, arguments: Sequence[Any], settings: dict[str, Any], outputs: list[Any], run: _Evaluation, version: int
) -> list[Any]:
    """The outputs with the errors of one rounding; the nodes of functions and subgraphs have theirs already."""
    if run.noise is None or node.op_type in EXACT or isinstance(node, OpFunction):
        return outputs
    name = _identity(node.onnx_node)[1]
    times = run.count(name)
    call = Call(
        op=node.op_type,
        identity=(name, times),
        node=node,
        inputs=arguments,
        y=outputs[0],
        draw=run.noise.draw(name, times),
        again=lambda inputs: _compute(node, inputs, settings, version),
        version=version,
        magnitudes=run.magnitudes,
    )
    return with_rounding(call, outputs)


def _captured_by(node: onnx.NodeProto) -> set[str]:
    """The names that the subgraphs of a node take from around it."""
    graphs = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return set().union(*map(_free_names, graphs))


def _free_names(graph: onnx.GraphProto) -> set[str]:
    def names(values: Iterable[Any]) -> set[str]:
        return {value.name for value in values}

    own = names(graph.input) | names(graph.initializer) | {name for node in graph.node for name in node.output}
    used = names(graph.output).union(*(node.input for node in graph.node), *map(_captured_by, graph.node))
    return used - own - {""}

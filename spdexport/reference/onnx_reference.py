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
import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun, RuntimeContextError

from spdexport.errors import ExampleInputError
from spdexport.files.reading import first_line
from spdexport.reference.onnx_bounds import Allowance, BeyondLimitError, check_output
from spdexport.reference.onnx_legacy import LEGACY_OPERATORS
from spdexport.reference.onnx_microsoft import MICROSOFT_OPERATORS
from spdexport.reference.onnx_operators import OPERATORS, promote
from spdexport.reference.onnx_quantized import QUANTIZED_OPERATORS
from spdexport.reference.onnx_recurrent import RECURRENT_OPERATORS
from spdexport.reference.onnx_resize import RESIZE_OPERATORS
from spdexport.reference.onnx_windows import WINDOW_OPERATORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from spdexport.conv import Array

NOISY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
# onnx's reference computes these in float32, whatever it is given.
FLOAT32_ONLY = ("CausalConvWithState", "LinearAttention")
_OPERATORS = [
    *LEGACY_OPERATORS,
    *MICROSOFT_OPERATORS,
    *OPERATORS,
    *QUANTIZED_OPERATORS,
    *RECURRENT_OPERATORS,
    *RESIZE_OPERATORS,
    *WINDOW_OPERATORS,
]


class ReferenceUnavailable(Exception):  # noqa: N818 - no fault of the model or the user: there is nothing to compare with
    """The float64 reference cannot compute a node.

    Attributes:
        op: The operator, with its domain where that is not ONNX's own: ``com.microsoft.FusedConv``.
        node: The node's name, or that of its first output.
        reason: Why not.
        is_beyond: Whether it is a limit that was come to, which ONNX Runtime does not know.
        is_missing: Whether the operator, or what it is asked for, has no reference, whatever the values are.
    """

    def __init__(self, op: str, node: str, reason: str, *, is_beyond: bool = False, is_missing: bool = False) -> None:
        super().__init__(f"the float64 reference cannot compute {op} (node {node}): {reason}")
        self.op = op
        self.node = node
        self.reason = reason
        self.is_beyond = is_beyond
        self.is_missing = is_missing


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSpec:
    """Rounding noise: each output of a convolution or matrix product gets ``u (|W| |x| + |b|) N(0, 1)``.

    Attributes:
        seed: Not negative. The noise of a node depends on it, on the node's name and on how often it ran before.
        unit_rounding: u, such as 2**-24 for float32.
    """

    seed: int
    unit_rounding: float


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
        noise: NoiseSpec | None = None,
        watch: Callable[[str, Array], None] | None = None,
    ) -> dict[str, Array]:
        """The model's outputs: float64 where the file has a float of up to 32 bits, else of the file's dtype.

        Args:
            inputs: An array for each input without a default, floats of any width.
            noise: Rounding noise to add, in subgraphs and functions too.
            watch: Called with the name and array of each node's outputs as they come. Nodes inside subgraphs and
                functions are not watched, for their names are not the model's.

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
        run = _Run(self._evaluator, self._base_dir, noise, watch, is_partial=self._is_partial)
        token = _RUN.set(run)
        try:
            values = self._evaluator.run(None, {name: promote(value) for name, value in inputs.items()})
        finally:
            _RUN.reset(token)
        self.hidden = run.hidden
        found = zip(self._evaluator.output_names, values, strict=True)
        return {name: value for name, value in found if not isinstance(value, ReferenceUnavailable)}


class _Run:
    """What all evaluators of one call of `OnnxReference.run` share."""

    def __init__(
        self,
        top: _Evaluator,
        base_dir: str,
        noise: NoiseSpec | None,
        watch: Callable[[str, Array], None] | None,
        *,
        is_partial: bool = False,
    ) -> None:
        self.top = top
        self.is_partial = is_partial
        self.hidden: dict[str, ReferenceUnavailable] = {}
        self.base_dir = base_dir
        self.noise = noise
        self.watch = watch
        self.allowance = Allowance()
        self._times: dict[str, int] = {}

    def normal(self, node: str, shape: tuple[int, ...], seed: int) -> Array:
        """Standard normal values, that differ between nodes and between the calls of one node."""
        times = self._times[node] = self._times.get(node, -1) + 1
        digest = int.from_bytes(hashlib.sha256(node.encode()).digest()[:8], "little")
        return np.random.default_rng([seed, digest, times]).standard_normal(shape)


# onnx makes the evaluators of subgraphs and functions itself and runs them without a word of ours: this is how they
# learn of the run they are part of.
_RUN: contextvars.ContextVar[_Run] = contextvars.ContextVar("run")
_PARTIAL: contextvars.ContextVar[bool] = contextvars.ContextVar("partial", default=False)
"""Whether nodes without a reference are to be loaded all the same."""


class _Evaluator(ReferenceEvaluator):
    """onnx's evaluator with lazy weights, early release, noise, and float64 throughout; for every level of a model."""

    def __init__(self, proto: Any, **settings: Any) -> None:
        # Functions are given no operators by onnx, and subgraphs those of their parent: all get the same here.
        settings["new_ops"] = _OPERATORS
        super().__init__(proto, **settings)

    def _init(self) -> None:
        """Loads the operators, and leaves the weights where they are."""
        tensors, self.inits_ = self.inits_, []
        for tensor in tensors:
            if isinstance(tensor, onnx.SparseTensorProto):
                raise ReferenceUnavailable("a sparse initializer", tensor.values.name, "only dense ones are read")
        super()._init()
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._captured = [_captured_by(node.onnx_node) for node in self.rt_nodes_]
        last = {name: index for index, node in enumerate(self.rt_nodes_) for name in node.output}
        for index, node in enumerate(self.rt_nodes_):
            last.update(dict.fromkeys([*node.input, *self._captured[index]], index))
        self._expiring: list[list[str]] = [[] for _ in self.rt_nodes_]
        for name, index in last.items():
            if name and name not in self.output_names_:
                self._expiring[index].append(name)

    def _load_impl(self, node: onnx.NodeProto, input_types: Any = None) -> Any:
        try:
            return self._known(node, input_types)
        except ReferenceUnavailable as error:
            if not _PARTIAL.get():
                raise
            return _missing(error)

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
        """The outputs; onnx's own If, Loop, Scan and functions call it too."""
        run = _RUN.get()
        watch = run.watch if self is run.top else None
        if self is not run.top:
            run.allowance.enter(len(self.rt_nodes_))
        version = self.opsets_.get("", 0)
        values: dict[str, Any] = {"": None, **feed_inputs}
        for node, captured, expiring in zip(self.rt_nodes_, self._captured, self._expiring, strict=True):
            settings: dict[str, Any] = {}
            if node.has_linked_attribute and attributes:
                settings["linked_attributes"] = attributes
            if node.need_context():
                settings["context"] = {name: self._value(name, values, run) for name in captured}
            arguments = [self._value(name, values, run) for name in node.input]
            try:
                _check_hidden([*arguments, *settings.get("context", {}).values()])
                outputs = _compute(node, arguments, settings, version)
            except ReferenceUnavailable as error:
                if not (run.is_partial and error.is_missing and self is run.top):
                    raise
                outputs = [error] * len(node.output)
                run.hidden.update(dict.fromkeys(node.output, error))
            if (
                run.noise is not None
                and not isinstance(outputs[0], ReferenceUnavailable)
                and node.op_type in NOISY
                and not node.domain
            ):
                outputs[0] = _with_noise(node, arguments, settings, outputs[0], run, version)
            for name, value in zip(node.output, outputs, strict=False):
                if name:
                    values[name] = value
                    if watch is not None and isinstance(value, np.ndarray):
                        watch(name, value)
            for name in expiring:
                values.pop(name, None)
        return [self._value(name, values, run) for name in output_names or self.output_names_]

    def _value(self, name: str, values: dict[str, Any], run: _Run) -> Any:
        if name in values:
            return values[name]
        return promote(onnx.numpy_helper.to_array(self._tensors[name], run.base_dir))


def _missing(error: ReferenceUnavailable) -> type[OpRun]:
    """An operator that says why it has no reference when it is to be computed."""

    def run(self: OpRun, *arguments: Any, **attributes: Any) -> tuple[Array, ...]:  # noqa: ARG001 - any operator's
        raise error

    return type("Missing", (OpRun,), {"_run": run, "op_schema": None})


def _check_hidden(arguments: Iterable[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, ReferenceUnavailable):
            raise argument


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


def _with_noise(
    node: OpRun, arguments: Sequence[Any], settings: dict[str, Any], output: Array, run: _Run, version: int
) -> Array:
    """The output with noise; integer products are exact and get none."""
    if run.noise is None or output.dtype != np.float64:
        return output
    sizes = [None if argument is None else np.abs(argument) for argument in arguments]
    product = _compute(node, sizes[:2], settings, version)[0]
    magnitude = np.abs(product)
    if len(sizes) > 2 and sizes[2] is not None:
        # The bias by itself, since Gemm's alpha and beta may differ in sign.
        magnitude += np.abs(_compute(node, sizes, settings, version)[0] - product)
    normal = run.normal(_identity(node.onnx_node)[1], output.shape, run.noise.seed)
    noisy: Array = output + run.noise.unit_rounding * magnitude * normal
    return noisy


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

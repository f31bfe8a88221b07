"""Which providers run here, and sessions that say what they did.

ONNX Runtime is forgiving where a proof must not be. Asked for CUDA on a machine without it, it makes a CPU session;
when a provider fails during a run, it retries on another one and prints a line. Here both are failures: a session is
opened only after its provider was seen to run, the retry is off, and the placement of each node can be read.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import mmap
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from spdexport.errors import UsageError
from spdexport.ort.installed import DISTRIBUTIONS, FATAL, import_onnxruntime
from spdexport.ort.installed import version as version_of
from spdexport.ort.providers import CPU, DEFAULT, Provider, Purpose, provider_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import ModuleType

    from spdexport.conv import Array


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How a session is made.

    Attributes:
        provider: Where the nodes are to run.
        optimized: Whether graph optimizations run, all of them or none.
        purpose: What it is for, which decides about the provider's options.
        threads: The number of threads of one operator; None leaves it to ONNX Runtime.
        spinning: Whether idle threads spin. Off where sessions are timed side by side, for their threads would
            fight for the cores.
        without: ONNX Runtime's names of graph optimizations that are left out.
    """

    provider: Provider = CPU
    optimized: bool = False
    purpose: Purpose = Purpose.CHECK
    threads: int | None = None
    spinning: bool = True
    without: tuple[str, ...] = ()


class Port(NamedTuple):
    """An input or output of a model: dimensions are numbers, names of dynamic axes, or None where nothing is known."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype[Any]
    required: bool = True


class PlacedNode(NamedTuple):
    """A node and the provider that ONNX Runtime gave it to."""

    provider: str
    name: str
    op_type: str
    domain: str


class RuntimeFailure(Exception):  # noqa: N818 - it is ONNX Runtime that failed; the model's verdict is made of it
    """ONNX Runtime could not load or run a model.

    Attributes:
        code: ONNX Runtime's name of the fault, such as ``INVALID_GRAPH``; empty where it gives none.
    """

    def __init__(self, message: str) -> None:
        match = re.match(r"\[ONNXRuntimeError\] : \d+ : (\w+) : ", message)
        self.code = match[1] if match else ""
        super().__init__(message[match.end() :] if match else message)


@functools.cache
def provider_status(provider: Provider) -> str | None:
    """Return None where a model really runs on the provider here, else what is missing and how to get it.

    A session is made on a small convolution, run, and its placement read; the answer is kept for the process.

    Raises:
        RuntimeMissingError: As in `import_onnxruntime`.
    """
    ort = import_onnxruntime()
    if provider.ort_name not in ort.get_available_providers():
        package = next((name for name in DISTRIBUTIONS if version_of(name)), "onnxruntime")
        return (
            f"the installed {package} has no {provider.ort_name}: run `pip uninstall -y {package}`, "
            f"then `pip install {provider.package}`"
        )
    if missing := provider.missing(ort):
        return missing
    try:
        session = _create(ort, _probe_model(), SessionSettings(provider=provider))
        session.run({"x": np.ones((1, 8, 8, 8), np.float32)})
        placed = session.placed_nodes()
    except RuntimeFailure as failure:
        fault = f"ONNX Runtime's {provider.ort_name} failed on a small convolution: {failure}"
        return provider.missing_kernels(ort) or fault
    if placed is None:
        # A file is judged on its own placement, and that edge says that it cannot be read.
        return None
    ran_on = ", ".join(node.provider for node in placed)
    if ran_on == provider.ort_name:
        return None
    fault = f"ONNX Runtime ran a small convolution on {ran_on} when asked for {provider.ort_name}"
    return provider.missing_kernels(ort) or fault


def usable_provider(name: str) -> Provider:
    """Return the provider of a name, which can run here.

    Raises:
        UsageError: There is none of that name, or it cannot run here; the error says what is missing.
        RuntimeMissingError: As in `import_onnxruntime`.
    """
    provider = provider_named(name)
    if missing := provider_status(provider):
        raise UsageError(
            f"The provider cannot run here: {missing}.", where=f"--provider {name}", hint="Name a provider that can."
        )
    return provider


def parse_providers(names: str | Sequence[str] | None) -> tuple[Provider, ...]:
    """Return the providers beside the CPU that a check runs on.

    Args:
        names: One or more of the names in ``PROVIDERS``; None for ``DEFAULT`` where it can run.

    Raises:
        UsageError: A name is none of these.
        RuntimeMissingError: As in `import_onnxruntime`.
    """
    if names is None:
        return (DEFAULT,) if provider_status(DEFAULT) is None else ()
    asked = map(provider_named, (names,) if isinstance(names, str) else names)
    return tuple(dict.fromkeys(provider for provider in asked if provider is not CPU))


def _crash(model: bytes | Path) -> str | None:
    """Why ONNX Runtime would end this process, and not say that it cannot run a model; None where nothing is known of.

    Known are batch normalization before opset 14 whose outputs of the training form have no name, and random numbers of
    no spread. A process of its own for the first session of each file would find others, and cost a second for every
    file.
    """
    try:
        if isinstance(model, bytes):
            data = model if any(word in model for word in _CRASHING) else b""
        else:
            with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                data = bytes(mapped) if any(mapped.find(word) >= 0 for word in _CRASHING) else b""
        proto = onnx.ModelProto.FromString(data)
    except (DecodeError, OSError, ValueError):  # ONNX Runtime says better what is wrong
        return None
    opset = next((opset.version for opset in proto.opset_import if not opset.domain), 0)
    for node in _nodes([*proto.graph.node, *(node for function in proto.functions for node in function.node)]):
        if (why := _crashes(node, opset)) is not None:
            name = node.name or next(iter(node.output), "")
            return f"{node.op_type} (node {name}) has {why}, on which ONNX Runtime would end the process"
    return None


_CRASHING = (b"BatchNormalization", b"Random")
"""What the names of operators with a form that ends the process begin with."""


def _crashes(node: onnx.NodeProto, opset: int) -> str | None:
    """What of a node ends the process; None for nothing that is known."""
    numbers = {attribute.name: attribute.f for attribute in node.attribute}
    if node.op_type == "BatchNormalization" and opset < 14 and len(node.output) > 1 and not all(node.output):
        return "outputs without a name"
    if node.op_type.startswith("RandomNormal") and not numbers.get("scale", 1.0) > 0:
        return "a scale that is not above 0"
    if node.op_type.startswith("RandomUniform") and not numbers.get("low", 0.0) <= numbers.get("high", 1.0):
        return "a low that is above its high"
    return None


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of the graphs inside of them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def open_session(model: bytes | Path, settings: SessionSettings) -> Session:
    """Return a session for a model.

    Args:
        model: The bytes of an ONNX file, or its path (needed where weights are in external data).
        settings: Where and how it is to run.

    Raises:
        RuntimeFailure: The provider cannot run here (the message says what is missing), or ONNX Runtime rejects the
            model.
        RuntimeMissingError: As in `import_onnxruntime`.
    """
    ort = import_onnxruntime()
    if settings.provider is not CPU and (missing := provider_status(settings.provider)):
        raise RuntimeFailure(missing)
    if fault := _crash(model):
        raise RuntimeFailure(f"[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : {fault}")
    return _create(ort, model, settings)


class Session:
    """A loaded model that runs on numpy arrays and says where its nodes ran. Made by `open_session`."""

    def __init__(self, ort: ModuleType, inference: Any, settings: SessionSettings) -> None:
        self._ort = ort
        self._inference = inference
        self.requested = settings

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs; those with a default in the file come last and are not required."""
        required = [_port(arg) for arg in self._inference.get_inputs()]
        optional = [_port(arg)._replace(required=False) for arg in self._inference.get_overridable_initializers()]
        return (*required, *optional)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The outputs, in the file's order."""
        return tuple(_port(arg) for arg in self._inference.get_outputs())

    @property
    def settings(self) -> dict[str, dict[str, str]]:
        """The options in force, by ONNX Runtime's name of each provider of the session."""
        return {name: dict(options) for name, options in self._inference.get_provider_options().items()}

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the model's outputs.

        Args:
            inputs: An array for each input, of the input's dtype; bfloat16 as ml_dtypes has it.
            outputs: The names wanted; None for all.

        Returns:
            The arrays by name, in the order asked for, of the file's dtypes.

        Raises:
            RuntimeFailure: The inputs do not fit the model, or a node failed.
        """
        ports = {port.name: port for port in self.outputs}
        names = list(ports) if outputs is None else list(outputs)
        if unknown := [name for name in names if name not in ports]:
            raise RuntimeFailure(f"the model has no output {', '.join(unknown)}, only {', '.join(ports)}")
        with _failures(self._ort):
            values = {name: self._to_ort(array) for name, array in inputs.items()}
            results = self._inference.run_with_ort_values(names, values)
            return {name: _from_ort(value) for name, value in zip(names, results, strict=True)}

    def runner(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return a function that runs the model on these inputs and throws away what it gives: what is timed.

        Raises:
            RuntimeFailure: From the function: a node failed.
        """
        values = {name: self._to_ort(array) for name, array in inputs.items()}
        names = [port.name for port in self.outputs]

        def run() -> object:
            with _failures(self._ort):
                return self._inference.run_with_ort_values(names, values)

        return run

    def placed_nodes(self) -> tuple[PlacedNode, ...] | None:
        """Return the nodes with the provider that ONNX Runtime assigned each to; None where ONNX Runtime does not tell.

        Assignment comes before most fusions, so nearly all nodes of the file are there under their own names even if
        one kernel computes several of them; nodes that constant folding removed are not.
        """
        if not hasattr(self._inference, "get_provider_graph_assignment_info"):
            return None  # before 1.24
        return tuple(
            PlacedNode(subgraph.ep_name, node.name, node.op_type, node.domain)
            for subgraph in self._inference.get_provider_graph_assignment_info()
            for node in subgraph.get_nodes()
        )

    def placement(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the nodes by ONNX Runtime's name of the provider they were assigned to.

        None if not told.
        """
        placed: dict[str, list[str]] = {}
        for node in self.placed_nodes() or ():
            placed.setdefault(node.provider, []).append(node.name)
        return {provider: tuple(names) for provider, names in placed.items()}

    def _to_ort(self, array: Array) -> Any:
        array = np.ascontiguousarray(array) if array.ndim else array
        if array.dtype == ml_dtypes.bfloat16:
            # numpy has no bfloat16 of its own, and ONNX Runtime takes its bits only when told what they are.
            bits = array.view(np.uint16)
            return self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)
        return self._ort.OrtValue.ortvalue_from_numpy(array)


def _probe_model() -> bytes:
    """One convolution, for its kernels are what a GPU provider is asked for here."""
    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "w")
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 8, n, n)) for name, n in (("x", 8), ("y", 6))
    )
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], "probe", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _create(ort: ModuleType, model: bytes | Path, settings: SessionSettings) -> Session:
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if settings.optimized else levels.ORT_DISABLE_ALL
    options.use_deterministic_compute = True
    options.intra_op_num_threads = settings.threads or 0
    for pool in ("intra", "inter"):
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "1" if settings.spinning else "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    source = str(model) if isinstance(model, Path) else model
    providers = settings.provider.chain(settings.purpose, settings.threads)
    with _failures(ort):
        inference = ort.InferenceSession(
            source, options, providers=providers, enable_fallback=0, disabled_optimizers=list(settings.without)
        )
    inference.disable_fallback()
    return Session(ort, inference, settings)


@contextlib.contextmanager
def _failures(ort: ModuleType) -> Iterator[None]:
    """Turns ONNX Runtime's exceptions into RuntimeFailure; its own classes have no common base but Exception."""
    state = ort.capi.onnxruntime_pybind11_state
    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    expected: tuple[type[Exception], ...] = (RuntimeError, ValueError, *own)
    try:
        yield
    except expected as error:
        raise RuntimeFailure(str(error)) from error


def _port(arg: Any) -> Port:
    return Port(arg.name, tuple(arg.shape), _dtype(arg.type))


def _dtype(ort_type: str) -> np.dtype[Any]:
    """The numpy dtype for ``tensor(float)`` and its like; object for sequences, maps and strings."""
    match = re.fullmatch(r"tensor\((\w+)\)", ort_type)
    name = match[1] if match else "object"
    special: dict[str, Any] = {
        "float": np.float32,
        "double": np.float64,
        "bfloat16": ml_dtypes.bfloat16,
        "string": object,
    }
    try:
        return np.dtype(special.get(name, name))
    except TypeError:  # a type that numpy does not have, such as float8e4m3fn
        return np.dtype(object)


def _from_ort(value: Any) -> Array:
    if value.data_type() == "tensor(bfloat16)" and value.device_name() == "cpu":
        raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
        return np.frombuffer(raw, dtype=ml_dtypes.bfloat16).reshape(value.shape()).copy()
    if not value.is_tensor():
        raise RuntimeFailure(f"an output is a {value.data_type()}, and only tensors can be compared")
    return np.asarray(value.numpy())

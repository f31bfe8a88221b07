"""The time of a layer's forms on ONNX Runtime, as a cost that plans are chosen by: measured once, then read from disk.

A form is measured as a small model of its own with the layer's real shape. What it takes to bring the layer's input and
output into the layout of the kernels is in every form alike, so that it does not change which one is fastest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from spdexport.conv import stored_weight
from spdexport.errors import InputError, OutputError, UsageError
from spdexport.files.atomic import replacing
from spdexport.files.reading import reading
from spdexport.files.sniff import read_text
from spdexport.ort.installed import versions
from spdexport.ort.providers import CPU, Provider, Purpose
from spdexport.ort.sessions import SessionSettings, open_session, provider_status
from spdexport.ort.timing import Spread, interleaved
from spdexport.rewrite.onnx_graph import conv_attributes
from spdexport.rewrite.onnx_lanes import pad_lanes

if TYPE_CHECKING:
    from spdexport.conv import Array, ConvSite, ConvSpec
    from spdexport.cost import FormShape

ROUNDS = 25
SECONDS = 0.5
"""A form is run so often, or so many seconds long, whichever is less."""

MARGIN = 0.03
"""Another form than dense must be faster by this share: medians differ by less from one measurement to the next."""

OPSET = 18

_FOREVER = 1e6
"""Seconds that no run takes."""

CACHE_VARIABLE = "SPDEXPORT_CACHE"
"""The environment variable that names the folder of the cache; else it is the user's cache folder."""

CACHE_DEPTH = 3
"""How many folders of the cache are made where they are missing: ``.cache``, ``spdexport`` and ``latency``."""

Measure = Callable[[ir.Model, "Array", SessionSettings], float]
"""Gives the seconds of one run of a model with the one input ``x``."""


def cache_folder() -> Path:
    """Return where times are kept."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    # Not Path.home(), which is an error for a user without a home.
    home = os.path.expanduser("~")  # noqa: PTH111
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(home) / ".cache") / "spdexport"


def measure(model: ir.Model, x: Array, settings: SessionSettings) -> float:
    """Return the median time of a run, in seconds.

    Raises:
        RuntimeFailure: ONNX Runtime cannot run the model.
    """
    session = open_session(ir.to_proto(model).SerializeToString(), settings)
    (times,) = interleaved([session.runner({"x": x})], rounds=ROUNDS, seconds=SECONDS)
    return Spread.of(times).median


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyCost:
    """Measured time as a ``CostModel``, for one sample.

    Attributes:
        provider: Where forms are measured.
        threads: Of one operator; None for ONNX Runtime's own choice.
        folder: Where times are kept; None for ``cache_folder()``.
        lane: To how many channels together components are padded in the file; 1 for not at all.
        measure: How a model is timed.
        told: Called with a few words before each measurement.
    """

    provider: Provider = CPU
    threads: int | None = None
    folder: Path | None = None
    lane: int = 1
    measure: Measure = measure
    told: Callable[[str], None] = lambda _: None
    _known: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Look whether the provider runs here.

        Raises:
            UsageError: It does not.
        """
        if missing := provider_status(self.provider):
            raise UsageError(
                f"Latency cannot be measured on {self.provider.name}: {missing}.",
                where="--optimize-for latency",
                hint="Give --provider cpu, or --optimize-for macs, which measures nothing.",
            )

    @property
    def name(self) -> str:
        """Told with the provider, the threads, and the margin that dense has."""
        threads = "" if self.threads is None else f", threads {self.threads}"
        return (
            f"latency on {self.provider.name}{threads}, one sample; another form than dense saves {MARGIN:.0%} or more"
        )

    @property
    def unit(self) -> str:
        """Seconds."""
        return "s"

    def __call__(self, site: ConvSite, shape: FormShape) -> float:
        """The median time of the form, and the margin on top of it for all but the dense one; seconds.

        Raises:
            UsageError: The sizes of the layer's input are not known.
        """
        seconds = self._seconds(site, shape)
        return seconds if len(shape.stages) == 1 else seconds * (1 + MARGIN)

    def _seconds(self, site: ConvSite, shape: FormShape) -> float:
        key = self._key(site, shape)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        if digest in self._known:
            return self._known[digest]
        path = (self.folder or cache_folder()) / "latency" / f"{digest[:32]}.json"
        seconds = _read(path, key)
        if seconds is None:
            self.told(f"measuring forms: {site.name} as {shape.name}")
            settings = SessionSettings(
                provider=self.provider,
                optimized=True,
                purpose=Purpose.DEPLOYMENT,
                threads=self.threads,
                spinning=False,
            )
            model, x = form_model(site, shape)
            # Every row of layers there is of the one form.
            model, _ = pad_lanes(model, self.lane, bool)
            seconds = self.measure(model, x, settings)
            if not _write(path, {"key": key, "seconds": seconds}) and not self._known:
                self.told(f"times are not kept for the next run: {path.parent} cannot be written to")
        self._known[digest] = seconds
        return seconds

    def _key(self, site: ConvSite, shape: FormShape) -> dict[str, Any]:
        """Everything that the time depends on."""
        if site.input_size is None:
            raise UsageError(
                f"The sizes of the input of {site.name} are not known, so that its time cannot be measured.",
                where="--optimize-for latency",
                hint="Give --input-shape or --inputs, or --optimize-for macs.",
            )
        stages = [[_facts(spec) for spec in chain] for chain in shape.chains]
        installed = versions()
        return {
            "stages": stages,
            "input": list(site.input_size),
            "lane": self.lane,
            "bias": site.bias is not None,
            "dtype": site.weight.dtype.name,
            "provider": self.provider.name,
            "threads": self.threads,
            "onnxruntime": installed["onnxruntime"],
            "device": installed.get("cuda_device") if self.provider is not CPU else None,
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "rounds": ROUNDS,
        }


def form_model(site: ConvSite, shape: FormShape) -> tuple[ir.Model, Array]:
    """Return a model that holds nothing but a form, with random weights, and its input ``x`` for one sample.

    Args:
        site: The layer, whose ``input_size`` is known.
        shape: The form.
    """
    assert site.input_size is not None, "a layer of unknown size has no time"
    spec, random = site.spec, np.random.default_rng(0)
    dtype = ir.DataType.from_numpy(site.weight.dtype)

    def weight(name: str, *sizes: int) -> ir.Value:
        array = (random.standard_normal(sizes) / max(math.prod(sizes[1:]), 1) ** 0.5).astype(site.weight.dtype)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(sizes))
        value.type = ir.TensorType(dtype)
        initializers.append(value)
        return value

    initializers: list[ir.Value] = []
    nodes: list[ir.Node] = []
    sizes = (1, spec.in_channels, *site.input_size) if spec.axes else (1, *site.input_size, spec.in_channels)
    x = ir.Value(name="x", shape=ir.Shape(sizes), type=ir.TensorType(dtype))
    terms: list[ir.Value] = []
    for number, chain in enumerate(shape.chains):
        value = x
        for index, stage in enumerate(chain):
            name = f"{number}.{index}"
            last = number == 0 and index == len(chain) - 1
            bias = weight(f"{name}.bias", stage.out_channels) if last and site.bias is not None else None
            value = _stage(nodes, stage, value, weight, name, bias, flat=len(sizes) == 2)
        terms.append(value)
    total = terms[0]
    for term in terms[1:]:
        nodes.append(ir.Node("", "Add", [total, term]))
        total = nodes[-1].outputs[0]
    total.name, total.type = "y", ir.TensorType(dtype)
    total.shape = ir.Shape([None] * len(sizes))
    graph = ir.Graph([x], [total], nodes=nodes, initializers=initializers, opset_imports={"": OPSET}, name="form")
    return ir.Model(graph, ir_version=8), random.standard_normal(sizes).astype(site.weight.dtype)


def _stage(
    nodes: list[ir.Node],
    spec: ConvSpec,
    data: ir.Value,
    weight: Callable[..., ir.Value],
    name: str,
    bias: ir.Value | None,
    *,
    flat: bool,
) -> ir.Value:
    """Add one stage as the exporters write it: Conv, ConvTranspose, Gemm, or MatMul and Add."""
    biases = [] if bias is None else [bias]
    if spec.axes:
        stored = stored_weight(np.empty(spec.weight_shape, np.uint8), spec).shape
        op_type = "ConvTranspose" if spec.transposed else "Conv"
        inputs = [data, weight(name, *stored), *biases]
        nodes.append(ir.Node("", op_type, inputs, attributes=conv_attributes(spec)))
    elif flat:
        inputs = [data, weight(name, *spec.weight_shape), *biases]
        nodes.append(ir.Node("", "Gemm", inputs, attributes=(ir.AttrInt64("transB", 1),)))
    else:
        nodes.append(ir.Node("", "MatMul", [data, weight(name, *reversed(spec.weight_shape))]))
        if bias is not None:
            nodes.append(ir.Node("", "Add", [nodes[-1].outputs[0], bias]))
    return nodes[-1].outputs[0]


def _facts(spec: ConvSpec) -> list[Any]:
    return [spec.in_channels, spec.out_channels, *(json.loads(json.dumps(move)) for move in spec.moves)]


def cpu_name() -> str:
    """Return what the processor calls itself."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path, key: dict[str, Any]) -> float | None:
    """A time that was kept; None where there is none, or none that can be read: it is measured anew then."""
    if not path.exists():
        return None
    try:
        text = read_text(path, error=InputError, what="The time is not text", hint="Remove the file.")
        with reading(path):
            kept: object = json.loads(text)
    except InputError:
        return None
    seconds = kept.get("seconds") if isinstance(kept, dict) and kept.get("key") == key else None
    return float(seconds) if isinstance(seconds, int | float) and 0 < seconds < _FOREVER else None


def _write(path: Path, kept: dict[str, Any]) -> bool:
    """Keep a time, and return whether that is done: without a folder for it, it is measured again the next time.

    The folders of the cache are made in one that is there. A home that is missing is not made: nobody would look for
    files there.
    """
    missing = [folder for folder in list(path.parents)[:CACHE_DEPTH] if not folder.exists()]
    try:
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
        with replacing(path, durable=False) as temporary:
            temporary.write_text(json.dumps(kept, sort_keys=True), encoding="utf-8")
    except (OSError, UsageError, OutputError):
        return False
    return True

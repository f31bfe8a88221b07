"""The table of ONNX Runtime's providers: all that is particular to one of them is in its row.

A provider is added with a row of ``PROVIDERS``, a function where more than its package may be missing, and its name in
``cli_options.PROVIDERS``. Nothing else asks which provider it is.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from spdexport.cost import LANE_WIDTH
from spdexport.errors import UsageError
from spdexport.ort import cuda

if TYPE_CHECKING:
    from types import ModuleType

Options: TypeAlias = Mapping[str, str]
"""A provider's options, by ONNX Runtime's names."""

Missing: TypeAlias = "Callable[[ModuleType], str | None]"
"""Returns what a provider lacks here and how to get it, given the module ``onnxruntime``; None for nothing."""


class Purpose(StrEnum):
    """What a session is for, which decides about the options of its provider."""

    CHECK = "check"
    """Float32 means float32, and algorithms are pinned where they can be."""

    DEPLOYMENT = "deployment"
    """The provider's own defaults, which a deployment has."""

    COARSE = "coarse"
    """A check with nothing changed but that the provider's coarser number format is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarseFormat:
    """A number format with fewer digits in which a provider may compute what is float32 in the file.

    Attributes:
        name: As users know it, such as ``TF32``.
        unit_rounding: u of the format, half the distance from 1 to the next larger number.
        options: Those of a check with this format allowed; None where the provider has no such option.
        advice: How a deployment switches the format off, or can tell whether it is to blame.
    """

    name: str
    unit_rounding: float
    options: Options | None
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Provider:
    """A row of the table. Rows are compared by identity.

    Attributes:
        name: On the command line.
        ort_name: ONNX Runtime's own name.
        package: The package on PyPI that has it.
        missing: What is missing before a session is worth a try.
        missing_kernels: What is missing where a session was made and a convolution did not run.
        check: The options for a check; None where there is none beside the deployment's.
        deployment: The options for a deployment.
        fallbacks: The providers that take what this one leaves, in front of the CPU's.
        coarse: A coarser number format that a deployment may have; None where float32 stays float32.
        lane: How many channels its kernels compute together; 1 where layers are best planned without lanes.
        threads: The provider's own option for its number of threads; None where that of the session holds.
    """

    name: str
    ort_name: str
    package: str = "onnxruntime"
    missing: Missing = lambda _: None
    missing_kernels: Missing = lambda _: None
    check: Options | None = None
    deployment: Options = field(default_factory=dict)
    fallbacks: tuple[Provider, ...] = ()
    coarse: CoarseFormat | None = None
    lane: int = 1
    threads: str | None = None

    def options(self, purpose: Purpose, threads: int | None = None) -> dict[str, str]:
        """Return the options of a session.

        Args:
            purpose: What it is for; a provider without options for that has those of a deployment.
            threads: How many threads an operator may have; None for the provider's own choice.
        """
        coarse = None if self.coarse is None else self.coarse.options
        chosen = {Purpose.CHECK: self.check, Purpose.DEPLOYMENT: self.deployment, Purpose.COARSE: coarse}[purpose]
        own = {self.threads: str(threads)} if self.threads is not None and threads is not None else {}
        return {**(self.deployment if chosen is None else chosen), **own}

    def chain(self, purpose: Purpose, threads: int | None = None) -> list[tuple[str, dict[str, str]]]:
        """Return the provider, its fallbacks and the CPU's, each with its options, as ONNX Runtime takes them."""
        rows = dict.fromkeys((self, *self.fallbacks, CPU))
        return [(row.ort_name, row.options(purpose, threads)) for row in rows]


def cuda_major(ort: ModuleType) -> str:
    """Return the major version of CUDA that ONNX Runtime is built for; empty for a build without CUDA."""
    return str(getattr(ort, "cuda_version", None) or "").partition(".")[0]


def _missing_libraries(*tables: cuda.Libraries) -> Missing:
    """Return the function that looks for NVIDIA's driver, a device, and the libraries of some tables."""

    def missing(ort: ModuleType) -> str | None:
        # Finds the libraries inside the pip packages of NVIDIA, where the system's loader does not look; it prints.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            ort.preload_dlls()
        return cuda.missing(tuple(library for table in tables for library in table), cuda_major(ort))

    return missing


def _missing_cudnn(ort: ModuleType) -> str | None:
    return cuda.missing_libraries(cuda.CUDNN_LIBRARIES, cuda_major(ort))


def _openvino(precision: str) -> Options:
    """Return OpenVINO's options for the CPU with products in one number format: ``f32`` or ``bf16``."""
    return {"device_type": "CPU", "load_config": f'{{"CPU": {{"INFERENCE_PRECISION_HINT": "{precision}"}}}}'}


TF32_UNIT_ROUNDING = 2.0**-11
"""u of TF32, which keeps 10 bits behind the point of float32's 23."""

BFLOAT16_UNIT_ROUNDING = 2.0**-8
"""u of bfloat16, which keeps 7."""

# EXHAUSTIVE, the default, times the algorithms and takes the fastest of the day: Winograd or FFT among them, whose
# rounding is several times that of direct sums. DEFAULT is one fixed algorithm.
_PINNED = {"cudnn_conv_algo_search": "DEFAULT"}

CPU = Provider(name="cpu", ort_name="CPUExecutionProvider", lane=LANE_WIDTH)

CUDA = Provider(
    name="cuda",
    ort_name="CUDAExecutionProvider",
    package="onnxruntime-gpu",
    missing=_missing_libraries(cuda.CUDA_LIBRARIES),
    missing_kernels=_missing_cudnn,
    check={"use_tf32": "0", **_PINNED},
    coarse=CoarseFormat(
        name="TF32",
        unit_rounding=TF32_UNIT_ROUNDING,
        options={"use_tf32": "1", **_PINNED},
        advice="use_tf32=0 among the provider's options switches it off",
    ),
)

TENSORRT = Provider(
    name="tensorrt",
    ort_name="TensorrtExecutionProvider",
    package="onnxruntime-gpu",
    missing=_missing_libraries(cuda.CUDA_LIBRARIES, cuda.CUDNN_LIBRARIES, cuda.TENSORRT_LIBRARIES),
    fallbacks=(CUDA,),
    # ONNX Runtime has no option for TF32 in TensorRT.
    coarse=CoarseFormat(
        name="TF32",
        unit_rounding=TF32_UNIT_ROUNDING,
        options=None,
        advice="set NVIDIA_TF32_OVERRIDE=0 in the environment to tell",
    ),
)

OPENVINO = Provider(
    name="openvino",
    ort_name="OpenVINOExecutionProvider",
    package="onnxruntime-openvino",
    # Processors with units for bfloat16 may use them for float32 where OpenVINO is left to choose.
    check=_openvino("f32"),
    coarse=CoarseFormat(
        name="bfloat16",
        unit_rounding=BFLOAT16_UNIT_ROUNDING,
        options=_openvino("bf16"),
        advice="INFERENCE_PRECISION_HINT f32 in the provider's load_config switches it off",
    ),
    # Measured: its time follows whole blocks of 16 channels, as that of ONNX Runtime's own kernels does.
    lane=LANE_WIDTH,
    threads="num_of_threads",
)

WEBGPU = Provider(name="webgpu", ort_name="WebGpuExecutionProvider", package="onnxruntime-webgpu")

PROVIDERS: Mapping[str, Provider] = {row.name: row for row in (CPU, CUDA, TENSORRT, OPENVINO, WEBGPU)}
"""The rows by their names on the command line, in the order that ``--help`` shows."""

DEFAULT = CUDA
"""The provider that a check takes beside the CPU where none is named and it can run."""


def provider_named(name: str) -> Provider:
    """Return the row of a name.

    Raises:
        UsageError: There is none.
    """
    if name not in PROVIDERS:
        raise UsageError(
            f"There is no provider {name!r}.", where="--provider", hint=f"Choose from {', '.join(PROVIDERS)}."
        )
    return PROVIDERS[name]

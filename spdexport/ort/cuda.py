"""What the machine has for ONNX Runtime's CUDA providers: the driver, a device, and the shared libraries.

Asked through ctypes, so that neither torch nor a provider has to be loaded to say what is missing.
"""

from __future__ import annotations

import ctypes
import sys
from typing import NamedTuple, TypeAlias

Libraries: TypeAlias = tuple[tuple[str, str], ...]

# Every shared library with the package on PyPI that brings it; {cuda} is the major version of CUDA that onnxruntime-gpu
# is built for. The provider does not start without these.
CUDA_LIBRARIES: Libraries = (
    ("libcudart.so.{cuda}", "nvidia-cuda-runtime"),
    ("libcublasLt.so.{cuda}", "nvidia-cublas"),
    ("libcublas.so.{cuda}", "nvidia-cublas"),
    ("libcurand.so.10", "nvidia-curand"),
)
# It starts without this one, and opens it when the first operator needs it.
CUDNN_LIBRARIES: Libraries = (("libcudnn.so.9", "nvidia-cudnn-cu{cuda}"),)
TENSORRT_LIBRARIES: Libraries = (
    ("libnvinfer.so.10", "tensorrt-cu{cuda}"),
    ("libnvonnxparser.so.10", "tensorrt-cu{cuda}"),
)


class NoDeviceError(Exception):
    """There is no CUDA device that can be used; the message says why."""


class Device(NamedTuple):
    """The first CUDA device.

    Attributes:
        name: As the driver has it, such as ``NVIDIA H200``.
        driver_cuda: The newest version of CUDA that the driver runs, as (major, minor).
    """

    name: str
    driver_cuda: tuple[int, int]


def first_device() -> Device:
    """Return the first CUDA device.

    Raises:
        NoDeviceError: No driver is installed, or it sees no device.
    """
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        raise NoDeviceError(f"no NVIDIA driver is installed ({library} is missing)") from None
    if status := driver.cuInit(0):
        raise NoDeviceError(f"the NVIDIA driver sees no usable device (cuInit returns {status})")
    count, version, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value < 1:
        raise NoDeviceError("the NVIDIA driver sees no device")
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    # The driver's API writes CUDA 13.2 as 13020.
    return Device(name.value.decode(errors="replace"), (version.value // 1000, version.value % 1000 // 10))


def missing_libraries(table: Libraries, cuda_major: str) -> str | None:
    """Return the libraries of a table that cannot be loaded, and how to install them; None if all are there.

    Args:
        table: Library and package names, as in this module.
        cuda_major: What stands for ``{cuda}`` in them, such as ``"13"``.
    """
    if not sys.platform.startswith("linux"):
        return None  # the names are those of Linux
    missing: dict[str, str] = {}
    for library, package in table:
        try:
            ctypes.CDLL(library.format(cuda=cuda_major))
        except OSError:
            missing[library.format(cuda=cuda_major)] = package.format(cuda=cuda_major)
    if not missing:
        return None
    packages = " ".join(dict.fromkeys(missing.values()))
    return f"missing {', '.join(missing)}: `pip install {packages}` brings {'it' if len(missing) == 1 else 'them'}"


def missing(table: Libraries, cuda_major: str) -> str | None:
    """Return what keeps a provider that is built for CUDA from starting here; None if nothing is seen.

    Args:
        table: The libraries it needs.
        cuda_major: The major version of CUDA that it is built for; empty if it does not say.
    """
    try:
        device = first_device()
    except NoDeviceError as error:
        return str(error)
    if cuda_major.isdigit() and device.driver_cuda[0] < int(cuda_major):
        newest = ".".join(map(str, device.driver_cuda))
        return f"the NVIDIA driver runs CUDA up to {newest}, and onnxruntime-gpu needs {cuda_major}: update the driver"
    return missing_libraries(table, cuda_major)

"""What is installed: ONNX Runtime, told clearly where it is missing or doubled, and the versions of everything."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import sys
import warnings
from typing import TYPE_CHECKING

from spdexport.errors import RuntimeMissingError
from spdexport.ort import cuda

if TYPE_CHECKING:
    from types import ModuleType

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-webgpu")
"""The packages that bring the module ``onnxruntime``, of which an environment can have one."""

FATAL = 4  # ONNX Runtime's log severities run from 0 (verbose) to 4; what matters of the rest reaches us as exceptions


def import_onnxruntime() -> ModuleType:
    """Return the onnxruntime module, silent.

    Raises:
        RuntimeMissingError: It is not installed, does not load, or is installed in two packages.
    """
    installed = [name for name in DISTRIBUTIONS if version(name) is not None]
    if len(installed) > 1:
        raise RuntimeMissingError(
            f"{' and '.join(installed)} are {'both' if len(installed) == 2 else 'all'} installed, "
            "and overwrite each other's files.",
            where=sys.prefix,
            hint=f"Run `pip uninstall -y {' '.join(installed)}`, then install one of them: "
            "`pip install onnxruntime-gpu` for NVIDIA GPUs, else `pip install onnxruntime`.",
        )
    # It keeps an identity for telemetry below the user's home, which it makes where it is missing.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        with warnings.catch_warnings(action="ignore"):
            module = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeMissingError(
            f"ONNX Runtime cannot be imported: {error}.",
            where=sys.prefix,
            hint="Run `pip install onnxruntime`, or `pip install onnxruntime-gpu` for NVIDIA GPUs; never both.",
        ) from error
    if not hasattr(module, "InferenceSession"):
        # What is left in the folder after one of two overlapping packages was uninstalled.
        raise RuntimeMissingError(
            "The installed ONNX Runtime is damaged: it has no InferenceSession.",
            where=", ".join(module.__path__),
            hint=f"Run `pip install --force-reinstall {installed[0] if installed else 'onnxruntime'}`.",
        )
    # The default logger reports what providers do outside a session, on standard error.
    module.set_default_logger_severity(FATAL)
    return module


def has_torch() -> bool:
    """Return whether PyTorch is there; a file alone is verified and folded without."""
    try:
        importlib.import_module("torch")
    except ImportError:
        return False
    return True


def require_torch(remark: str = "") -> None:
    """Refuse what cannot be done without PyTorch.

    Raises:
        RuntimeMissingError: It is not installed.
    """
    if not has_torch():
        what = "This needs PyTorch, which is not installed."
        raise RuntimeMissingError(
            f"{what} {remark}".strip(),
            where=sys.prefix,
            hint="Run `pip install torch`; verifying a file alone needs none.",
        )


def versions() -> dict[str, str]:
    """Return what the result of a check depends on: package versions, Python, the platform, and the CUDA device if any.

    ``onnxruntime`` has the installed package's name before its version. Nothing is imported for it.
    """
    found = {name: v for name in ("spdexport", "onnx", "numpy", "torch") if (v := version(name))}
    runtimes = [f"{name} {v}" for name in DISTRIBUTIONS if (v := version(name))]
    found["onnxruntime"] = " and ".join(runtimes) or "not installed"
    found["python"] = platform.python_version()
    found["platform"] = platform.platform()
    with contextlib.suppress(cuda.NoDeviceError):
        found["cuda_device"] = cuda.first_device().name
    return found


def version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None

"""TorchScript archives: programs that are read before they run."""

from spdexport.files.torchscript.archive import checked_torchscript

__all__ = ["checked_torchscript"]

"""From a file, a run or a factory to a module or program."""

from spdexport.loading.load import load
from spdexport.loading.model import ExampleInputs, LoadedModel

__all__ = ["ExampleInputs", "LoadedModel", "load"]

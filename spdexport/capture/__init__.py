"""From a loaded model to an ExportedProgram: torch.export with example inputs and dynamic axes."""

from spdexport.capture.axes import BATCH, DynamicAxes
from spdexport.capture.call import call_module, eval_mode
from spdexport.capture.captured import Captured, capture

__all__ = ["BATCH", "Captured", "DynamicAxes", "call_module", "capture", "eval_mode"]

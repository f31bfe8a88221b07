"""From a loaded model to an ExportedProgram: torch.export with example inputs and dynamic axes."""

from spdexport.capture.axes import BATCH, DynamicAxes
from spdexport.capture.call import eval_mode, unheard
from spdexport.capture.captured import Captured, capture

__all__ = ["BATCH", "Captured", "DynamicAxes", "capture", "eval_mode", "unheard"]

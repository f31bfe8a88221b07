"""How a file's numbers are stored, where that is not as its source has them: eight bits, or half precision."""

from spdexport.precision.eight_bits import calibrated
from spdexport.precision.kinds import Precision, Storage
from spdexport.precision.lowering import Unstorable, lowered

__all__ = ["Precision", "Storage", "Unstorable", "calibrated", "lowered"]

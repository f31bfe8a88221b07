"""The forms a convolution can take: sums of chains of convolution stages, and how to fold them back into one."""

from spdexport.forms.base import Chain, Form, Stage
from spdexport.forms.compose import compose
from spdexport.forms.dense import dense
from spdexport.forms.factorized import factorized, variable_form
from spdexport.forms.families import FAMILIES, Family, Ranks
from spdexport.forms.fold import fold_form
from spdexport.forms.kinds import DeltaUse, FormKind
from spdexport.forms.pair import pair_form
from spdexport.forms.run_time import GateMode, LiveInput, Role, RunTime, VariableMask
from spdexport.forms.spatial import spatial_form
from spdexport.forms.tucker import tucker_form

__all__ = [
    "FAMILIES",
    "Chain",
    "DeltaUse",
    "Family",
    "Form",
    "FormKind",
    "GateMode",
    "LiveInput",
    "Ranks",
    "Role",
    "RunTime",
    "Stage",
    "VariableMask",
    "compose",
    "dense",
    "factorized",
    "fold_form",
    "pair_form",
    "spatial_form",
    "tucker_form",
    "variable_form",
]

"""The forms a convolution can take: sums of chains of convolution stages, and how to fold them back into one."""

from spdexport.forms.base import Chain, Form, Stage, compose, fold_form
from spdexport.forms.dense import dense
from spdexport.forms.factorized import factorized

__all__ = ["Chain", "Form", "Stage", "compose", "dense", "factorized", "fold_form"]

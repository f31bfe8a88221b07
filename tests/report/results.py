"""Results made by hand, for the reports."""

from pathlib import Path

import numpy as np

from spdexport.conv import ConvSite, ConvSpec, Skipped
from spdexport.forms import DeltaUse, FormKind
from spdexport.pipeline import Conversion, Inspection
from spdexport.planning import Decision, LayerPlan, Plan, PlanOptions
from spdexport.verification.result import Approximation, EdgeResult, LayerResult, Status, Verification, WorstCase

SPEC = ConvSpec.pointwise(2, 3, axes=0)


def layer(name="conv1", **changes):
    """A layer that pays: 4 live components of 8, break-even 6."""
    fields = {
        "name": name, "kind": "conv2d", "geometry": "16>32 3x3 s2 p1", "form": "factorized", "components": 8,
        "live": 4, "rank": 4, "break_even": 6.5, "macs_before": 295_000, "macs_after": 181_000, "delta_ratio": 0.125,
        "delta": "dropped", "masked": True, "reason": "4 live of 8 components, break-even 6", "kept": 4,
        "params_before": 4640, "params_after": 2850,
    }  # fmt: skip
    made = {**fields, **changes}
    return LayerPlan(**{**made, "form": FormKind(made["form"]), "delta": DeltaUse(made["delta"])})


def dear(name="conv1", **changes):
    """A layer that does not pay."""
    return layer(name, **{"live": 8, "kept": 8, "macs_after": 362_000, "params_after": 5700, **changes})


def left(name, reason):
    """A layer without components."""
    return layer(name, form="dense", components=None, live=None, rank=None, delta_ratio=None, delta="none",
                 masked=False, macs_after=295_000, reason=reason, kept=None, params_after=4640)  # fmt: skip


def plan(*layers, skipped=()):
    """A plan of these layers."""
    site = ConvSite(name="x", spec=SPEC, weight=np.zeros((3, 2), np.float32), bias=None, node="x")
    decisions = tuple(Decision(site=site, layer=x, factors=None) for x in layers)
    skips = tuple(Skipped(name=name, kind=kind, reason=reason) for name, kind, reason in skipped)
    return Plan(decisions=decisions, skipped=skips, options=PlanOptions())


def edge(name, status=Status.PASS, **changes):
    """A result of one edge."""
    fields = {"edge": name, "status": status, "noise_ratio": 0.5, "max_abs": 1e-6, "reason": "6 inputs compared"}
    return EdgeResult(**{**fields, **changes})


NO_DEVICE = edge(
    "device", Status.NOT_RUN, noise_ratio=None, max_abs=None, reason="no provider beside the CPU was asked for"
)


def check(name="conv1", status=Status.PASS, **changes):
    """What was found of a layer."""
    fields = {"name": name, "status": status, "weights_ratio": 0.25, "output_ratio": 0.5, "bound": 1e-6}
    return LayerResult(**{**fields, **changes})


def worst(**changes):
    """The worst input, of one value."""
    fields = {
        "edge": "export", "provider": "cpu", "case": "normal, batch 1", "status": Status.FAIL, "noise_ratio": 900.0,
        "inputs": {"x": np.ones((1, 2), np.float32)}, "outputs": {"y": np.full((1, 3), 2, np.float32)},
        "reference": {"y": np.full((1, 3), 1.0)},
    }  # fmt: skip
    return WorstCase(**{**fields, **changes})


WEIGHTS_FAIL = edge(
    "weights", Status.FAIL, noise_ratio=2.1e5, max_abs=0.01, first_divergence="conv2",
    reason="conv2.weight[0, 0, 1, 1] is 0.135 where 0.125 is right: 2.1e+05 times what rounding explains",
)  # fmt: skip


def verification(*edges, **changes):
    """A verification with these edges."""
    fields = {
        "edges": edges or (edge("capture"), edge("rewrite"), edge("export", provider="cpu"), NO_DEVICE),
        "approximation": Approximation(max_abs=1.5, relative_l2=0.25, top1_agreement=0.9375, samples=16),
        "inputs": ("normal, batch 2",),
        "notes": ("discarded: large, batch 1",),
        "seed": 3,
        "versions": {"torch": "2.13.0", "onnxruntime": "onnxruntime-gpu 1.31.1"},
        "artifacts": {"m.onnx": "abc"},
    }
    return Verification(**{**fields, **changes})


def conversion(*layers, outputs=(), found=None, skipped=(), notes=()):
    """A conversion of these layers."""
    return Conversion(
        plan=plan(*layers, skipped=skipped),
        components="spd",
        hashes={"source": "5e", "m.onnx": "abc"},
        notes=tuple(notes),
        seed=3,
        versions={"torch": "2.13.0", "onnxruntime": "onnxruntime-gpu 1.31.1"},
        outputs=tuple(map(Path, outputs)),
        verification=found,
    )


def inspection(*layers, **changes):
    """An inspection of these layers."""
    made = conversion(*layers, **changes)
    return Inspection(
        plan=made.plan,
        components="svd",
        hashes=made.hashes,
        notes=made.notes,
        seed=made.seed,
        versions=made.versions,
    )

import json
import math

import pytest
from results import SPEC, check, conversion, edge, inspection, layer, left, verification

from spdexport.conv import Skipped
from spdexport.errors import UsageError
from spdexport.folding import Folding
from spdexport.report.json_report import as_text, to_json
from spdexport.report.written import write_text
from spdexport.rewrite.fold_result import FoldedChain
from spdexport.verification.result import Status

KEYS = {
    "schema_version", "verdict", "layers", "skipped", "edges", "approximation", "inputs", "notes", "seed", "versions",
    "artifacts", "layer_checks", "tolerance",
}  # fmt: skip
LAYER_KEYS = {
    "name", "kind", "form", "components", "live", "rank", "macs_before", "macs_after", "delta_ratio", "reason",
}  # fmt: skip
EDGE_KEYS = {"edge", "provider", "status", "noise_ratio", "max_abs", "first_divergence", "reason",
             "setting"}  # fmt: skip


def folding():
    return Folding(
        outputs=(),
        folded=(FoldedChain(name="conv1", nodes=("a", "b"), spec=SPEC, macs_before=10, macs_after=6),),
        declined=(Skipped(name="c", kind="conv2d", reason="an output is used elsewhere"),),
        verification=verification(),
        hashes={"m.onnx": "abc"},
        notes=(),
        versions={},
        seed=0,
    )


RESULTS = (conversion(layer(), found=verification()), inspection(layer()), verification(), folding())


@pytest.mark.parametrize("result", RESULTS, ids=lambda r: type(r).__name__)
def test_every_command_reports_the_same_names(result):
    report = to_json(result)
    assert report.keys() >= KEYS
    assert report["schema_version"] == 1
    assert all(x.keys() >= LAYER_KEYS for x in report["layers"])
    assert all(x.keys() == EDGE_KEYS for x in report["edges"])
    json.dumps(report, allow_nan=False)


def test_a_conversion():
    report = to_json(conversion(layer(), left("fc", "excluded"), skipped=[("emb", "embedding", "no site")],
                                found=verification(), notes=["a note"], outputs=["out/m.onnx"]))  # fmt: skip
    assert report["verdict"] == "pass"
    assert [x["name"] for x in report["layers"]] == ["conv1", "fc"]
    assert report["skipped"] == [{"name": "emb", "kind": "embedding", "reason": "no site"}]
    found = {"max_abs": 1.5, "relative_l2": 0.25, "top1_agreement": 0.9375, "samples": 16}
    unlimited = dict.fromkeys(("top1_before", "top1_after", "max_relative_l2", "max_top1_drop"))
    assert report["approximation"] == {**found, **unlimited, "exceeded": []}
    assert report["notes"] == ["a note", "discarded: large, batch 1"]
    assert report["artifacts"] == {"m.onnx": {"sha256": "abc"}, "source": {"sha256": "5e"}}
    assert report["outputs"] == ["m.onnx"]
    assert (report["seed"], report["versions"]["torch"]) == (3, "2.13.0")
    assert (report["macs_before"], report["macs_after"]) == (590_000, 476_000)


def test_what_was_found_of_layers():
    found = verification(
        layers=(check("conv1"), check("fc", Status.FAIL, weights_ratio=math.inf, bound=None)), atol=1e-5
    )
    report = to_json(conversion(layer("conv1"), layer("fc"), layer("fc2"), found=found))
    ratios = [(x["weights_ratio"], x["output_ratio"]) for x in report["layers"]]
    assert ratios == [(0.25, 0.5), (None, 0.5), (None, None)]
    assert report["layer_checks"] == [
        {"name": "conv1", "status": "pass", "weights_ratio": 0.25, "output_ratio": 0.5, "bound": 1e-6},
        {"name": "fc", "status": "fail", "weights_ratio": None, "output_ratio": 0.5, "bound": None},
    ]
    assert report["tolerance"] == {"atol": 1e-5, "rtol": None}


def test_without_verification_the_verdict_is_not_run():
    assert to_json(conversion(layer()))["verdict"] == "not_run"
    assert to_json(inspection(layer()))["verdict"] == "not_run"


@pytest.mark.parametrize("status", [Status.PASS, Status.FAIL, Status.INCONCLUSIVE])
def test_verdicts(status):
    assert to_json(verification(edge("export", status)))["verdict"] == status.value


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_finite_are_null(number):
    report = to_json(conversion(layer(break_even=number), found=verification(edge("export", noise_ratio=number))))
    assert report["edges"][0]["noise_ratio"] is None
    assert report["layers"][0]["break_even"] is None


def test_a_folded_layer_has_its_cost_for_one_location_only():
    (folded,) = to_json(folding())["layers"]
    assert (folded["form"], folded["reason"]) == ("dense", "folded from a, b")
    assert (folded["macs_before"], folded["macs_before_per_location"]) == (None, 10)


def test_writing_replaces_the_file_whole(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("before")
    write_text(path, as_text(conversion(layer("schicht.äöü"))))
    assert json.loads(path.read_text(encoding="utf-8"))["layers"][0]["name"] == "schicht.äöü"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_writing_where_it_cannot(tmp_path):
    with pytest.raises(UsageError, match="folder of the output does not exist"):
        write_text(tmp_path / "no" / "r.json", "{}")

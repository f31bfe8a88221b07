import math
from dataclasses import replace

import pytest
from results import NO_DEVICE, WEIGHTS_FAIL, check, edge, verification

from spdexport.ort.sessions import SessionSettings
from spdexport.report.explain import advice, edge_names, edge_reason, failing_layers, layer_reason, tolerance
from spdexport.verification.result import Meant, Status
from spdexport.verification.tapping import tapping_hides


def test_names_of_edges():
    assert edge_names([edge("capture"), edge("export", provider="cpu")]) == ["capture", "export (cpu)"]


def test_one_provider_in_two_settings_has_two_names():
    strict = edge("device", provider="cuda", setting="TF32 off")
    own = edge("device", provider="cuda", setting="the provider's own settings")
    assert edge_names([strict, own]) == ["device (cuda), TF32 off", "device (cuda), the provider's own settings"]


def test_names_are_unique_whatever_the_reasons_are():
    same = edge("device", provider="cuda", reason="no")
    assert edge_names([same, same, same]) == ["device (cuda)", "device (cuda) #2", "device (cuda) #3"]


def test_the_reason_of_a_failure_has_layer_and_size():
    assert edge_reason(WEIGHTS_FAIL).startswith("first diverges at conv2: conv2.weight[0, 0, 1, 1] is 0.135 where")
    assert edge_reason(WEIGHTS_FAIL).endswith("(largest error 0.01)")
    assert edge_reason(edge("capture")) == "6 inputs compared"


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (check(), ("weights: an error of 0.25 times what rounding explains; output: an error of 0.5 times what "
         "rounding explains; the error of the weights moves the output by at most 1e-06")),
        (check(weights_ratio=0.0, output_ratio=None, bound=0.0), "weights: no error"),
        (check(weights_ratio=math.inf, output_ratio=None, bound=None),
         "weights: an error that rounding cannot explain at all"),
        (check(weights_ratio=None, output_ratio=96.0, bound=None),
         "output: an error of 96 times what rounding explains, above 8 fails"),
        (check(status=Status.NOT_RUN, weights_ratio=None, output_ratio=None, bound=None),
         "nothing of this layer was compared"),
    ],
)  # fmt: skip
def test_the_reason_of_a_layer(layer, words):
    assert layer_reason(layer) == words


def test_advice_is_about_the_first_edge_that_fails():
    found = verification(edge("capture"), WEIGHTS_FAIL, edge("export", Status.FAIL, provider="cpu"), NO_DEVICE)
    assert advice(found).edge == "weights"
    assert "convert again" in advice(found).to_do


def test_advice_is_not_about_what_is_inconclusive_where_something_failed():
    found = verification(edge("capture", Status.INCONCLUSIVE), edge("optimize", Status.FAIL, provider="cpu"))
    assert advice(found).edge == "optimize (cpu)"
    assert "ORT_DISABLE_ALL" in advice(found).to_do


@pytest.mark.parametrize("name", ["capture", "weights", "rewrite", "export", "optimize", "device"])
@pytest.mark.parametrize("status", [Status.FAIL, Status.INCONCLUSIVE])
def test_every_edge_has_advice(name, status):
    found = advice(verification(edge(name, status)))
    assert found.edge == name
    assert found.means
    assert found.to_do


def test_a_pass_needs_no_advice():
    assert advice(verification()) is None


def test_failing_layers():
    found = verification(layers=(check("a"), check("b", Status.FAIL), check("c", Status.NOT_RUN)))
    assert [x.name for x in failing_layers(found)] == ["b"]


def test_tolerance():
    assert "above 8 fails" in tolerance(verification())
    given = tolerance(verification(atol=1e-5, rtol=0.0))
    assert given == "tolerance: atol 1e-05 and rtol 0, set by the user in the place of the model's own"


REFUSED = "ONNX Runtime cannot run the file: Dilation not supported"
NO_REFERENCE = "the float64 reference cannot compute Odd (node n): no definition of it is known"


@pytest.mark.parametrize("name", ["export", "optimize"])
def test_a_file_that_onnx_runtime_does_not_run_is_not_said_to_compute_something(name):
    for status, words in ((Status.INCONCLUSIVE, "does not run the file, so that"), (Status.FAIL, "is not valid as it")):
        told = advice(verification(edge(name, status, provider="cpu", reason=REFUSED)))
        assert words in told.means
        assert "computes something else" not in told.means


def test_what_has_no_reference_is_not_helped_by_other_inputs():
    told = advice(verification(edge("export", Status.INCONCLUSIVE, provider="cpu", reason=NO_REFERENCE)))
    assert "nothing to compare a part of the file with" in told.means
    assert "--inputs" not in told.to_do


@pytest.mark.parametrize("name", ["capture", "weights", "rewrite", "export", "optimize", "device"])
def test_nothing_was_traced_or_exported_where_the_source_is_a_file(name):
    for meant in (Meant.SOURCE, Meant.ITSELF, Meant.OTHER):
        told = advice(replace(verification(edge(name, Status.FAIL)), meant=meant))
        assert not any(word in told.means + told.to_do for word in ("torch", "exporter", "forward", "module"))
        assert told.means


def test_two_files_that_differ_are_not_blamed_on_onnx_runtime():
    told = advice(replace(verification(edge("export", Status.FAIL, provider="cpu")), meant=Meant.OTHER))
    assert told.means == "the file computes something else than the file that it is compared with"


def test_nothing_is_blamed_on_fusions_where_none_happen():
    assert "fusion" not in tapping_hides(SessionSettings(optimized=False))
    assert "fusion" in tapping_hides(SessionSettings(optimized=True))

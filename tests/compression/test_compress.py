"""The whole search: what it finds, keeps, refuses and writes."""

import json
import shutil
from pathlib import Path

import compressible_nets as nets
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cli_command import spdexport as command

import spdexport
from spdexport.errors import ExampleInputError, SourceError, UsageError

FILE = Path(nets.__file__)


def factory(name):
    return f"{FILE}:{name}"


def outputs(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def top1(path, x, labels):
    return float(np.mean(outputs(path, x).argmax(1) == labels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images without labels (``x.npz``), with them (``labelled.npz``), and the planted net as ``dense.onnx``."""
    folder = tmp_path_factory.mktemp("compress")
    x = nets.images(180)
    np.savez(folder / "x.npz", x=x)
    np.savez(folder / "labelled.npz", x=nets.images(1200), labels=nets.answers(nets.Full(), nets.images(1200)))
    spdexport.convert(
        None, folder / "dense.onnx", factory=factory("Planted"), form="dense", input_shape="2x2x12x12", verify=False
    )
    return folder


@pytest.fixture(scope="module")
def planted(folder):
    """The planted net, compressed."""
    return spdexport.compress(
        None,
        folder / "planted.onnx",
        factory=factory("Planted"),
        data=folder / "x.npz",
        max_relative_l2=1e-3,
        lane_width=1,
        save_components=folder / "planted.safetensors",
        save_plan=folder / "planted.json",
    )


def test_exact_low_rank_is_found_and_loses_nothing(planted, folder):
    layers = {layer.name: layer for layer in planted.search.layers}
    assert (layers["pair"].form, layers["pair"].ranks) == ("recompressed", (5,))
    assert (layers["split"].form, layers["split"].ranks) == ("spatial", (6,))
    assert planted.search.chosen.cost < 0.5
    assert planted.search.test.interval.high < 1e-3
    assert planted.verdict == "pass"
    x = nets.images(50, seed=5)
    want = outputs(folder / "dense.onnx", x)
    np.testing.assert_allclose(outputs(folder / "planted.onnx", x), want, atol=1e-3 * np.abs(want).max())


def test_saved_forms_make_the_same_bytes(planted, folder):
    spdexport.convert(
        None,
        folder / "again.onnx",
        factory=factory("Planted"),
        components=folder / "planted.safetensors",
        plan=folder / "planted.json",
        input_shape="2x2x12x12",
        verify=False,
    )
    assert (folder / "again.onnx").read_bytes() == (folder / "planted.onnx").read_bytes()


def test_an_onnx_source_gives_the_same_choice(planted, folder):
    found = spdexport.compress(
        folder / "dense.onnx", folder / "from_onnx.onnx", data=folder / "x.npz", max_relative_l2=1e-3, lane_width=1
    )
    told = [(layer.name, layer.form, layer.ranks) for layer in found.search.layers]
    assert told == [(layer.name, layer.form, layer.ranks) for layer in planted.search.layers]
    assert found.verdict == "pass"


def test_a_budget_of_accuracy_is_kept_on_data_of_its_own(folder):
    found = spdexport.compress(
        None,
        folder / "full.onnx",
        factory=factory("Full"),
        data=folder / "labelled.npz",
        max_top1_drop=0.05,
        calibration_samples=96,
        verify=False,
    )
    chosen = found.search.chosen
    assert chosen is not None
    assert chosen.accepted
    assert chosen.loss <= chosen.bound <= 0.05
    assert any(point.accepted is False for point in found.search.points)
    accepted = [point.cost for point in found.search.points if point.accepted]
    assert chosen.cost == min(accepted)
    x = nets.images(2000, seed=7)
    assert top1(folder / "full.onnx", x, nets.answers(nets.Full(), x)) >= 1 - 0.07


@pytest.mark.parametrize("cost", ["macs", "size"])
@pytest.mark.sampled(1)
def test_a_budget_of_cost_is_reached(folder, cost):
    found = spdexport.compress(
        None, folder / "half.onnx", factory=factory("Full"), data=folder / "x.npz", verify=False, **{cost: 0.5}
    )
    (point,) = found.search.points
    assert 0.3 < getattr(point, cost) <= 0.5
    assert point.accepted is None
    assert found.plan.macs_after < found.plan.macs_before


@pytest.mark.long
def test_refitting_makes_good_what_earlier_layers_lose(folder, monkeypatch):
    def lost():
        found = spdexport.compress(
            None, folder / "fit.onnx", factory=factory("Full"), data=folder / "x.npz", macs=0.3, verify=False
        )
        return found.search.points[0].loss

    fitted = lost()
    from spdexport.compression.fitting import Fitting

    monkeypatch.setattr(Fitting, "_form", lambda _self, _site, candidate, _other, _targets: candidate.make())
    monkeypatch.setattr(Fitting, "_dense", lambda *_: None)
    assert fitted < 0.985 * lost()


@pytest.mark.long
def test_tokens_take_biases_and_shared_weights_are_left_alone(tmp_path):
    tokens = np.random.default_rng(0).standard_normal((200, 5, 32)).astype(np.float32)
    spdexport.convert(
        nets.Tokens(), tmp_path / "dense.onnx", form="dense", input_shape="2x5x32", dynamic=["x:1=n"], verify=False
    )
    found = spdexport.compress(tmp_path / "dense.onnx", tmp_path / "t.onnx", data=tokens, max_relative_l2=0.02)
    assert "up" in {layer.name for layer in found.search.layers}
    assert found.verdict == "pass"
    same = spdexport.compress(
        nets.Tokens(), tmp_path / "torch.onnx", data=tokens, max_relative_l2=0.02, dynamic=["x:1=n"]
    )
    assert "up" in {layer.name for layer in same.search.layers}
    assert same.verdict == "pass"
    assert not {layer.name for layer in same.search.layers} & {"shared", "shared#2"}


def test_a_file_of_fixed_batch_is_filled_up(folder, tmp_path):
    spdexport.convert(
        None,
        tmp_path / "fixed.onnx",
        factory=factory("Planted"),
        form="dense",
        input_shape="7x2x12x12",
        dynamic_batch=False,
        verify=False,
    )
    found = spdexport.compress(
        tmp_path / "fixed.onnx", tmp_path / "out.onnx", data=folder / "x.npz", max_relative_l2=1e-3, verify=False
    )
    assert {layer.name for layer in found.search.layers} >= {"pair", "split"}


@pytest.mark.long
def test_your_own_metric_is_the_budget(folder, tmp_path):
    (tmp_path / "m.py").write_text("def right(logits, labels):\n    return logits.argmax(1) == labels\n")
    found = spdexport.compress(
        None,
        tmp_path / "m.onnx",
        factory=factory("Full"),
        data=folder / "labelled.npz",
        verify=False,
        calibration_samples=96,
        metric=f"{tmp_path / 'm.py'}:right",
        max_metric_drop=0.05,
    )
    assert found.search.loss == "drop of right"
    assert found.search.chosen.bound <= 0.05


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 0.5", r"The metric returned float64 of shape \(\) for 32 samples"),
        ("raise KeyError('boxes')", "The metric raised KeyError: 'boxes'"),
    ],
)
def test_a_metric_that_cannot_be_used_is_told(folder, tmp_path, body, said):
    (tmp_path / "m.py").write_text(f"def right(logits, labels):\n    {body}\n")
    with pytest.raises(SourceError, match=said):
        spdexport.compress(
            None,
            tmp_path / "m.onnx",
            factory=factory("Full"),
            data=folder / "x.npz",
            verify=False,
            metric=f"{tmp_path / 'm.py'}:right",
            max_metric_drop=0.05,
        )
    assert not (tmp_path / "m.onnx").exists()


def test_where_nothing_keeps_the_budget_the_dense_model_is_written(folder, tmp_path):
    found = spdexport.compress(
        None, tmp_path / "d.onnx", factory=factory("Full"), data=folder / "x.npz", max_relative_l2=1e-9, verify=False
    )
    assert found.search.chosen is None
    assert "no choice that was tried keeps the budget" in found.search.kept_dense
    x = nets.images(20)
    with torch.no_grad():
        want = nets.Full()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(outputs(tmp_path / "d.onnx", x), want, atol=1e-4)


def test_the_command_tells_the_search_in_80_columns(folder, tmp_path):
    result = command(
        "compress",
        "--factory",
        factory("Full"),
        "--data",
        folder / "labelled.npz",
        "--max-top1-drop",
        "5%",
        "--calibration-samples",
        96,
        "--exclude",
        "stem",
        "-o",
        tmp_path / "c.onnx",
        "--no-verify",
        "--report",
        tmp_path / "c.json",
        "--html",
        tmp_path / "c.html",
    )
    assert result.exit_code == 0, result.output
    assert "loss against cost, of all choices that were tried" in result.stdout
    assert "taken" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if str(tmp_path) not in line) <= 80
    report = json.loads((tmp_path / "c.json").read_text())
    points = report["search"]["points"]
    assert [point["chosen"] for point in points].count(True) == 1
    assert "stem" not in {layer["name"] for layer in report["search"]["layers"]}
    page = (tmp_path / "c.html").read_text()
    assert page.count("<circle") + page.count("<rect") == len(points)
    assert "the budget" in page


@pytest.mark.parametrize(
    ("options", "what", "where"),
    [
        ({}, "There is no budget", "the command"),
        ({"macs": 0.5, "max_kl": 0.1}, "within one budget", "--max-kl and --macs"),
        ({"macs": 1.5}, "1.5 is no budget", "--macs"),
        ({"max_kl": -1.0}, "-1 is no budget", "--max-kl"),
        ({"max_metric_drop": 0.1}, "no metric whose drop", "--max-metric-drop"),
        ({"max_kl": 0.1, "metric": "m.py:f"}, "Nothing limits the metric", "--metric"),
        ({"max_top1_drop": 0.001}, "cannot show a drop of 0.001", "the selection set"),
        ({"max_top1_drop": 2.0}, "2 is no budget", "--max-top1-drop"),
        ({"max_top1_drop": 0.0}, "No number of samples", "--max-top1-drop 0"),
        ({"macs": 0.5, "form": "auto"}, "The search decides that", "--form"),
        ({"macs": 0.5, "exclude": ["*"]}, "No layer is left to compress", "--exclude"),
        ({"macs": 0.5, "layers": ["nothing"]}, "matches no", "--layers"),
        ({"macs": 0.5, "calibration_samples": 500}, "cannot be divided", "--calibration-samples"),
    ],
)
def test_what_cannot_be_is_refused(folder, tmp_path, options, what, where):
    with pytest.raises(UsageError) as caught:
        spdexport.compress(None, tmp_path / "r.onnx", factory=factory("Full"), data=folder / "x.npz", **options)
    assert what in caught.value.what
    assert where in caught.value.where
    assert not (tmp_path / "r.onnx").exists()


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"x": np.full((40, 2, 12, 12), np.nan, np.float32)}, "The data hold NaN or infinity, in x"),
        ({"x": np.zeros((40, 2, 12, 12))}, "float64"),
        ({"x": np.zeros((2, 2, 12, 12), np.float32)}, "2 samples cannot be divided"),
        ({"x": np.zeros((40, 3, 12, 12), np.float32)}, ""),
    ],
)
def test_data_that_do_not_fit_are_refused(folder, tmp_path, arrays, what):
    with pytest.raises((ExampleInputError, SourceError, spdexport.ModelError)) as caught:
        spdexport.compress(folder / "dense.onnx", tmp_path / "r.onnx", data=arrays, macs=0.5)
    assert what in caught.value.what


@pytest.mark.parametrize("option", ["test", "selection"])
def test_samples_do_not_judge_what_they_chose(folder, tmp_path, option):
    with pytest.raises(UsageError, match=f"x.npz is given twice.*\n.*--data and --{option}"):
        spdexport.compress(
            folder / "dense.onnx", tmp_path / "r.onnx", data=folder / "x.npz", macs=0.5, **{option: folder / "x.npz"}
        )


def test_a_folder_that_is_missing_is_told_before_the_search(folder, tmp_path):
    told = []
    with pytest.raises(UsageError, match="The folder of the output does not exist"):
        spdexport.compress(
            folder / "dense.onnx", tmp_path / "no" / "r.onnx", data=folder / "x.npz", macs=0.5, progress=told.append
        )
    assert told == []


def test_the_smallest_file_is_looked_for_by_the_command(folder, tmp_path):
    arguments = ("--data", folder / "x.npz", "--max-relative-l2", "0.2", "-o", tmp_path / "p.onnx")
    result = command("compress", folder / "dense.onnx", *arguments, "--optimize-for", "params")
    assert result.exit_code == 0, result.output
    assert "cost: parameters" in result.stdout


def test_an_output_never_replaces_what_is_read(folder, tmp_path):
    shutil.copy(folder / "x.npz", tmp_path / "x.npz")
    with pytest.raises(UsageError, match="overwrite"):
        spdexport.compress(
            folder / "dense.onnx",
            tmp_path / "o.onnx",
            data=tmp_path / "x.npz",
            macs=0.5,
            save_components=tmp_path / "x.npz",
        )


def test_layers_inside_of_an_if_are_left_alone_with_the_reason(tmp_path):
    helper, random = onnx.helper, np.random.default_rng(0)
    weight = {n: onnx.numpy_helper.from_array(random.standard_normal((16, 16)).astype(np.float32), n) for n in "ab"}
    branch = [
        helper.make_graph(
            [helper.make_node("MatMul", ["h", "b"], [f"{side}_y"])],
            side,
            [],
            [helper.make_tensor_value_info(f"{side}_y", 1, ["n", 16])],
        )
        for side in ("then", "else")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("ReduceSum", ["h"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1]),
    ]
    zero = onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero")
    low = random.standard_normal((16, 2)) @ random.standard_normal((2, 16))
    weight["a"] = onnx.numpy_helper.from_array(low.astype(np.float32), "a")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 16])],
        [helper.make_tensor_value_info("y", 1, ["n", 16])],
        [*weight.values(), zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "if.onnx")
    found = spdexport.compress(
        tmp_path / "if.onnx",
        tmp_path / "o.onnx",
        data=random.standard_normal((90, 16)).astype(np.float32),
        size=0.9,
        lane_width=1,
        verify=False,
    )
    assert [layer.name for layer in found.search.layers] == ["h"]
    reasons = {layer.name: (layer.form, layer.reason) for layer in found.plan.layers if layer.name != "h"}
    assert reasons == {
        f"{side}_y in y.{side}": ("dense", f"it runs inside of y.{side}, where no data is seen")
        for side in ("then", "else")
    }


def test_interrupted_work_resumes_and_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    from spdexport.compression.fitting import Fitting

    steps = []
    wanted = {
        "factory": factory("Full"),
        "data": folder / "labelled.npz",
        "max_top1_drop": 0.05,
        "calibration_samples": 96,
        "verify": False,
    }
    whole = spdexport.compress(None, tmp_path / "a.onnx", cache=tmp_path / "cache", progress=steps.append, **wanted)
    assert len(whole.search.points) > 1
    assert [step for step in steps if step.startswith("trial 1 done, top-1 drop")]
    trials = sorted((tmp_path / "cache").glob("*/trial-*.npz"))
    assert len(trials) == len(whole.search.points)
    trials[0].unlink()
    trials[1].write_bytes(b"no archive")
    fitted = []
    fit = Fitting.forms
    monkeypatch.setattr(Fitting, "forms", lambda self, *given: fitted.append(1) or fit(self, *given))
    again = spdexport.compress(None, tmp_path / "b.onnx", cache=tmp_path / "cache", progress=steps.append, **wanted)
    assert len(fitted) == 2
    assert any("cannot be read and is done again" in step for step in steps)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert again.search.points == whole.search.points

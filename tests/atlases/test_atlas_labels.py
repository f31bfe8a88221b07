"""Labels of components beside their pictures: what the table calls each is what the page and the reports show."""

import json
import sqlite3

import numpy as np
import pytest
import torch
from cli_command import spdexport
from torch import nn

from spdexport import convert
from spdexport.atlases.labels import read_component_labels
from spdexport.errors import MaskError

SIZES = {"blocks.0": 3, "blocks.0#2": 3, "head": 2}

CSV = 'component_key,label\nblocks.0:0,edges\nblocks.0:2,\nhead:1,"zero, or six"\n'


def written(path, content):
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV),
        ("a.tsv", "layer\tcomponent_idx\tinterpretation\nblocks-0\t0\tedges\nhead\t1\tzero, or six\n"),
        ("a.json", json.dumps({"blocks.0:0": "edges", "head:1": "zero,\n or six"})),
        ("b.json", json.dumps([{"key": "blocks-0:0", "label": "edges"}, {"key": "head:1", "label": "zero, or six"}])),
    ],
)
def test_every_table_that_masks_takes(tmp_path, name, content):
    found, notes = read_component_labels(written(tmp_path / name, content), SIZES)
    assert found == {"blocks.0": {0: "edges"}, "blocks.0#2": {0: "edges"}, "head": {1: "zero, or six"}}
    assert notes == ()


def test_a_database_and_labels_of_layers_that_are_not_shown(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as made:
        made.execute("CREATE TABLE labels (component_key TEXT, label TEXT)")
        rows = [("head:0", "one"), ("head:0", "two"), ("head:0", "one"), *((f"tail:{i}", "x") for i in range(9))]
        made.executemany("INSERT INTO labels VALUES (?, ?)", rows)
    made.close()
    found, notes = read_component_labels(tmp_path / "a.db", SIZES)
    assert found["head"] == {0: "one; two"}
    assert notes == ("labels of 1 layer that is not shown left out: tail",)


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        ({"haed:0": "x"}, "labels no component that is shown", "Did you mean head?"),
        ({"head:2": "x"}, "has the component head:2, and head has 0 to 1", "made for this run"),
        ({"head": "x"}, "'head' names no component", "layer:3"),
        ({"head:0": " "}, "labels no component that is shown", "labels of this run's components"),
        ({}, "labels no component that is shown", "labels of this run's components"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, what, hint):
    with pytest.raises(MaskError, match=what) as caught:
        read_component_labels(written(tmp_path / "a.json", json.dumps(content)), SIZES)
    assert hint in caught.value.hint
    assert str(tmp_path / "a.json") in caught.value.where


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small network as V and U, and 6 samples."""
    folder = tmp_path_factory.mktemp("labels")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    convert(net, folder / "m.onnx", inputs=torch.randn(2, 5), verify=False)
    np.savez(folder / "x.npz", x=np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32))
    return folder


def drawn(folder, table):
    output, report = folder / "a.html", folder / "a.json"
    command = ("atlas", folder / "m.onnx", "--data", folder / "x.npz", "--labels", table, "-o", output)
    return spdexport(*command, "--report", report, "-v"), output, report


def test_the_page_and_the_report_have_them(folder, tmp_path):
    content = {"0:1": "<b>edges</b> & such", "2:0": "\x1b[31mred", "other:7": "nothing"}
    result, output, report = drawn(folder, written(tmp_path / "labels.json", json.dumps(content)))
    assert result.exit_code == 0, result.output
    assert "labels of 1 layer that is not shown left out: other" in result.output
    page = output.read_text(encoding="utf-8")
    assert '<p class="label">&lt;b&gt;edges&lt;/b&gt; &amp; such</p>' in page
    assert '<p class="label">\\x1b[31mred</p>' in page
    assert page.count('<p class="label">') == 2
    told = json.loads(report.read_text(encoding="utf-8"))
    shown = {f"{layer['name']}:{one['index']}": one["label"] for layer in told["layers"] for one in layer["shown"]}
    assert {name: label for name, label in shown.items() if label} == {"0:1": content["0:1"], "2:0": content["2:0"]}
    assert "labels labels.json" in told["artifacts"]


def test_a_table_of_another_run_is_told_before_the_work(folder, tmp_path):
    (folder / "a.html").unlink(missing_ok=True)
    result, output, _ = drawn(folder, written(tmp_path / "labels.json", json.dumps({"0:99": "x"})))
    assert result.exit_code == 4
    assert "The file has the component 0:99, and 0 has 0 to" in result.stderr
    assert not output.exists()
    assert "importances" not in result.output

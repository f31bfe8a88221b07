"""What a file says of how it was made: it gives itself no rights, and what it takes for intended is told."""

from __future__ import annotations

import json
from dataclasses import fields
from html import unescape
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
import torch
from cli_command import spdexport as run
from torch import nn

import spdexport
from spdexport.errors import SourceError, UsageError
from spdexport.options import NOT_RECORDED, RECORDED, Options
from spdexport.recorded import as_options
from spdexport.report import github
from spdexport.verification.result import Status

FACTORY = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8)
"""

EVIL = """
from pathlib import Path

Path({marker!r}).write_text("ran")


def make():
    raise SystemExit
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a factory, the state dict that it fits, and the file that was made of them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "net.py").write_text(FACTORY)
    spdexport.convert(None, folder / "m.onnx", factory=f"{folder / 'net.py'}:make", verify=False)
    spdexport.convert(None, folder / "rank.onnx", factory=f"{folder / 'net.py'}:make", rank=2, verify=False)
    return folder


def changed(path: Path, to: Path, **entries: Any) -> Path:
    """A copy with other entries in the metadata; a text is written as it is, and None removes one."""
    model = onnx.load(path)
    held = {p.key: p.value for p in model.metadata_props}
    for name, value in entries.items():
        key = f"spdexport.{name}"
        held.pop(key, None)
        if value is not None:
            held[key] = value if isinstance(value, str) else json.dumps(value)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, held)
    onnx.save(model, to)
    return to


def recorded(path: Path, entry: str = "options") -> Any:
    return json.loads(next(p.value for p in onnx.load(path).metadata_props if p.key == f"spdexport.{entry}"))


def test_each_option_is_recorded_or_it_is_said_why_not() -> None:
    assert sorted((*RECORDED, *NOT_RECORDED)) == sorted(f.name for f in fields(Options))
    assert set(Options().recorded()) == set(RECORDED)
    json.dumps(Options().recorded())


OTHERS = ("against", "__class__", "allow_pickle", "trust", "progress", "limits")
"""What is no option that a file could record, but an argument of something else."""

HOSTILE = (
    True,
    False,
    -1,
    0,
    10**30,
    1e308,
    "",
    "{folder}/evil.py:make",
    "{folder}/evil.pt",
    ["{folder}/evil.pt"],
    [["x"]],
    [None],
    ["9" * 5000],
    {"a": 1},
    [],
    "NaN",
)
"""JSON values, of which no option takes all."""


@pytest.mark.parametrize("name", sorted({*(f.name for f in fields(Options)), *OTHERS}))
def test_metadata_gives_no_rights(made: Path, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(EVIL.format(marker=str(marker)))

    class Evil:
        def __reduce__(self) -> Any:
            return exec, (EVIL.format(marker=str(marker)),)

    torch.save(Evil(), tmp_path / "evil.pt")
    refused = 0
    for value in HOSTILE:
        text = json.dumps(value).replace("{folder}", str(tmp_path)).replace('"NaN"', "NaN")
        options = json.dumps(recorded(made / "m.onnx"))[:-1] + f', "{name}": {text}}}'
        file = changed(made / "m.onnx", tmp_path / "evil.onnx", options=options)
        # Of a value that may be, the pickle itself is what is refused.
        with pytest.raises(SourceError) as caught:
            spdexport.verify(file, against=tmp_path / "evil.pt")
        assert not marker.exists(), value
        if caught.value.code == "source":
            refused += 1
            assert caught.value.where == str(file), value
            # NaN is no JSON, and spoils the whole entry.
            assert ("options" if value == "NaN" else name) in caught.value.what.replace("-", "_"), value
    assert refused == len(HOSTILE) if name not in RECORDED else refused >= len(HOSTILE) // 2


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(
            (name, value)
            for name in ("options", "sha256")
            for value in (1, [], "x", None, "{", "[" * 100_000, "9" * 5000)
        ),
        *(
            (name, value)
            for name in ("version", "source", "components", "content")
            for value in (1, [1], {"a": 1}, True)
        ),
        *product(("plan", "trimming", "folded"), ([1], 1, True)),
        ("sha256", {"masks": 1}),
        ("sha256", {"components": ["x"]}),
    ],
)
@pytest.mark.sampled(6)
def test_entries_of_another_kind(made: Path, tmp_path: Path, entry: str, value: Any) -> None:
    value = json.dumps("x") if value == "x" else value
    file = changed(made / "m.onnx", tmp_path / "m.onnx", **{entry: value})
    result = run("verify", file, "--factory", f"{made / 'net.py'}:make")
    if value is None:
        assert result.exit_code == 0, result.stderr
        return
    assert result.exit_code == 4, result.output
    what, where, _ = result.stderr.strip().splitlines()
    assert entry in what or next(iter(value)) in what
    assert str(file) in where


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"schema_version": 99},
        {"schema_version": 1, "layers": 3},
        {"schema_version": 1, "layers": [], "cost": {"model": "x", "unit": "y"}, "options": {"energy": 10**400}},
        "9" * 5000,
    ],
)
def test_a_plan_that_is_none(made: Path, tmp_path: Path, plan: Any) -> None:
    file = changed(made / "rank.onnx", tmp_path / "m.onnx", plan=plan)
    result = run("verify", file, "--factory", f"{made / 'net.py'}:make")
    assert result.exit_code == 4, result.output
    assert "plan" in result.stderr.splitlines()[0]
    assert "--save-plan" not in result.stderr, "nobody gave a plan"


@pytest.mark.parametrize("options", [{"rank": ["7"]}, {"energy": 0.999999}, {"form": "auto"}])
def test_a_plan_truncates_no_further_than_the_options(made: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    told = {**recorded(made / "rank.onnx"), "rank": [], **options}
    file = changed(made / "rank.onnx", tmp_path / "m.onnx", options=told)
    found = spdexport.verify(file, factory=f"{made / 'net.py'}:make")
    assert found.verdict is Status.FAIL


def test_options_that_do_not_go_together_are_the_files(made: Path, tmp_path: Path) -> None:
    told = {**recorded(made / "rank.onnx"), "energy": 0.5}
    file = changed(made / "rank.onnx", tmp_path / "m.onnx", options=told)
    with pytest.raises(SourceError, match="--rank and --energy"):
        spdexport.verify(file, factory=f"{made / 'net.py'}:make")


def test_a_pattern_that_names_nothing_is_the_files(made: Path, tmp_path: Path) -> None:
    told = {**recorded(made / "m.onnx"), "exclude": ["head*"]}
    file = changed(made / "m.onnx", tmp_path / "m.onnx", options=told)
    with pytest.raises(SourceError) as caught:
        spdexport.verify(file, factory=f"{made / 'net.py'}:make")
    assert "records --exclude head*" in caught.value.where
    with pytest.raises(UsageError):  # given, it is the user's
        spdexport.verify(made / "m.onnx", factory=f"{made / 'net.py'}:make", exclude=["head*"])


def test_an_axis_that_the_source_does_not_take_is_the_files(made: Path, tmp_path: Path) -> None:
    spdexport.convert(made / "m.onnx", tmp_path / "of_onnx.onnx", verify=False)
    told = {**recorded(tmp_path / "of_onnx.onnx"), "dynamic_batch": False}
    file = changed(tmp_path / "of_onnx.onnx", tmp_path / "m.onnx", options=told)
    with pytest.raises(SourceError) as caught:
        spdexport.verify(file, against=made / "m.onnx")
    assert "records --static-batch" in caught.value.where


def test_older_files_record_less(made: Path, tmp_path: Path) -> None:
    told = {name: value for name, value in recorded(made / "m.onnx").items() if name in ("delta", "form", "seed")}
    file = changed(made / "m.onnx", tmp_path / "m.onnx", options=told, trimming=None, content=None, sha256=None)
    found = spdexport.verify(file, factory=f"{made / 'net.py'}:make")
    assert (found.verdict, found.notes) == (Status.PASS, ())


def test_a_truncated_file_does_not_pass_for_an_exact_one(made: Path, tmp_path: Path) -> None:
    reports = ("--report", tmp_path / "r.json", "--junit", tmp_path / "r.xml", "--html", tmp_path / "r.html")
    command = ("verify", made / "rank.onnx", "--factory", f"{made / 'net.py'}:make")
    result = run(*command, *reports)
    assert result.exit_code == 0, result.output
    note = "taken from the file, not given: --rank 2 (the file is compared with the truncated model)"
    assert note in " ".join(result.stdout.split())
    assert "--rank 2" in run(*command, "-q").stdout, "the verdict alone tells it too"
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["recorded_options"] == {"rank": ["2"]}
    assert note in report["notes"]
    properties = ET.parse(tmp_path / "r.xml").iter("property")
    assert {"recorded rank": "--rank 2"}.items() <= {p.get("name"): p.get("value") for p in properties}.items()
    assert note in (tmp_path / "r.html").read_text()


def test_an_exact_file_makes_no_noise(made: Path, tmp_path: Path) -> None:
    result = run("verify", made / "m.onnx", "--factory", f"{made / 'net.py'}:make", "--report", tmp_path / "r.json")
    assert result.exit_code == 0
    assert "taken from the file" not in result.stdout
    assert "the file computes the intended model, to rounding" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text())["recorded_options"] == {}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"delta": "drop"}, "--delta drop"),
        ({"energy": 0.9, "exclude": ["1"]}, "--energy 0.9 --exclude 1"),
        ({"masks": "masks.npz", "mask_threshold": 0.5}, "--mask-threshold 0.5"),
        ({"exclude": ["1"]}, ""),
        ({"form": "auto", "optimize_for": "params"}, ""),
    ],
)
@pytest.mark.sampled(3)
def test_what_shapes_the_model_is_told_and_nothing_else(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(2, 8)
    np.savez(tmp_path / "v.npz", **{"0.V": np.ones((8, 2), np.float32), "0.U": np.ones((2, 8), np.float32)})
    np.savez(tmp_path / "masks.npz", **{"0": np.array([1.0, 0.0], np.float32)})
    files: dict[str, Any] = {"components": tmp_path / "v.npz", "inputs": inputs}
    if "masks" in options:
        files["masks"] = tmp_path / options["masks"]
    others = {name: value for name, value in options.items() if name != "masks"}
    spdexport.convert(net, tmp_path / "m.onnx", **files, **others, verify=False)
    found = spdexport.verify(tmp_path / "m.onnx", against=net, **files)
    assert found.verdict is Status.PASS
    assert as_options(found.recorded) == told
    assert any(told in note for note in found.notes if "taken from the file" in note) == bool(told)
    assert (told.split(" ")[0] in unescape(github.summary(found))) or not told


def test_components_that_are_missing(tmp_path: Path) -> None:
    net, inputs = nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8)
    np.savez(tmp_path / "v.npz", **{"0.V": np.ones((8, 2), np.float32), "0.U": np.ones((2, 8), np.float32)})
    spdexport.convert(net, tmp_path / "m.onnx", components=tmp_path / "v.npz", inputs=inputs, verify=False)
    with pytest.raises(UsageError, match="made with components, and they are not given"):
        spdexport.verify(tmp_path / "m.onnx", against=net, inputs=inputs)


def test_recorded_text_commands_no_terminal(made: Path, tmp_path: Path) -> None:
    told = {**recorded(made / "rank.onnx"), "rank": ["\x1b]0;x\x07*=2"]}
    file = changed(made / "rank.onnx", tmp_path / "m.onnx", options=told)
    result = run("verify", file, "--factory", f"{made / 'net.py'}:make")
    assert "\x1b]" not in result.output


def test_everything_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    from cli_command import FACTORY as DIGITS
    from cli_command import MASKS, RUN, SHAPE

    made_with = ("--factory", DIGITS, "--input-shape", SHAPE)
    assert run("convert", RUN, "-o", tmp_path / "m.onnx", *made_with, "--masks", MASKS, "--no-verify").exit_code == 0
    result = run("verify", tmp_path / "m.onnx", "--against", RUN)
    assert result.exit_code == 2
    assert "--factory FILE.py:NAME" in result.stderr
    assert "--masks FILE" in result.stderr
    result = run("verify", tmp_path / "m.onnx", "--against", RUN, *made_with)
    assert result.exit_code == 2
    assert "made with masks, and they are not given" in result.stderr
    assert "--factory" not in result.stderr


def test_files_that_are_compared_as_they_are_take_no_option_of_a_source(made: Path) -> None:
    factory = f"{made / 'net.py'}:make"
    result = run("verify", made / "m.onnx", "--against", made / "rank.onnx", "--factory", factory)
    assert result.exit_code == 2
    what, where, _ = result.stderr.splitlines()
    assert "rank.onnx is an ONNX file that m.onnx was not made from" in what
    assert "--factory" in where


def test_a_module_is_a_source_too(made: Path) -> None:
    torch.manual_seed(0)
    source: dict[str, Any] = {"against": nn.Sequential(nn.Linear(8, 8)), "inputs": torch.randn(2, 8)}
    assert dict(spdexport.verify(made / "rank.onnx", **source).recorded) == {"rank": ["2"]}
    # Given, it is the user's own.
    given = spdexport.verify(made / "rank.onnx", **source, rank=2)
    assert (given.verdict, dict(given.recorded), given.notes) == (Status.PASS, {}, ())

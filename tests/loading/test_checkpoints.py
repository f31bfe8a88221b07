"""Checkpoints as training scripts save them: the state dict is found wherever it is, or the choice is told."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_command import spdexport as run
from torch import nn
from torch.optim.swa_utils import AveragedModel

from spdexport.errors import PickleRefusedError, SourceError, UsageError
from spdexport.loading import load

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def bare():
    return nn.Linear(2, 3)


def other():
    return nn.Sequential(nn.Conv2d(3, 5, 3))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    (folder / "net.py").write_text(NET)
    return folder


def factory(folder: Path, name: str = "Net") -> str:
    return f"{folder / 'net.py'}:{name}"


def weights(fill: float = 1.0) -> dict[str, torch.Tensor]:
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "head.weight": (2, 4), "head.bias": (2,)}
    return {name: torch.full(shape, fill) for name, shape in shapes.items()}


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def adam() -> dict[str, Any]:
    """The state of an optimizer that has taken a step."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def fsdp_optimizer() -> dict[str, Any]:
    return {"state": {"conv.weight": {"exp_avg": torch.ones(4, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}


SCALER = {"scale": torch.tensor(65536.0), "growth_tracker": 0}
OTHER = {"mean": torch.ones(3), "std": torch.ones(3)}

ONE = {
    "PyTorch's ImageNet example": (
        "state_dict",
        lambda w: {
            "epoch": 3,
            "arch": "net",
            "state_dict": prefixed("module.", w),
            "best_acc1": torch.tensor(70.0),
            "optimizer": adam(),
            "scheduler": {"last_epoch": 3, "_last_lr": [0.1]},
        },
    ),
    "beside a weight of classes": ("state_dict", lambda w: {"state_dict": w, "weight": torch.ones(2)}),
    "Lightning": (
        "state_dict",
        lambda w: {
            "epoch": 1,
            "pytorch-lightning_version": "2.5",
            "state_dict": prefixed("model.", w),
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
            "optimizer_states": [adam()],
            "lr_schedulers": [],
            "hyper_parameters": {"lr": 0.1, "class_weights": torch.ones(2)},
        },
    ),
    "torchvision": ("model", lambda w: {"model": w, "optimizer": adam(), "scaler": SCALER, "epoch": 1}),
    "fairseq": ("model", lambda w: {"model": w, "cfg": None, "extra_state": {"train_iterator": {"epoch": 1}}}),
    "mmcv": ("state_dict", lambda w: {"meta": {"epoch": 1, "CLASSES": ("a", "b")}, "state_dict": w}),
    "DeepSpeed": ("module", lambda w: {"module": w, "buffer_names": [], "optimizer": None, "dp_world_size": 1}),
    "FSDP": ("model", lambda w: {"model": prefixed("_fsdp_wrapped_module.", w), "optim": fsdp_optimizer()}),
    "nested": ("checkpoint.model.state_dict", lambda w: {"checkpoint": {"model": {"state_dict": w}}, "step": 3}),
    "statistics beside it": ("net", lambda w: {"net": w, "normalization": OTHER, "rng": torch.get_rng_state()}),
    **{
        f"under {key}": (key, lambda w, key=key: {key: w, "step": torch.tensor(3)})
        for key in ("model_state", "network", "ema", "model_ema", "params", "generator", "weights", "student", "x y")
    },
}


@pytest.mark.parametrize("name", ONE)
def test_one_state_dict_is_found(folder: Path, tmp_path: Path, name: str) -> None:
    key, checkpoint = ONE[name]
    torch.save(checkpoint(weights()), tmp_path / "m.pt")
    loaded = load(tmp_path / "m.pt", factory=factory(folder))
    assert loaded.module is not None
    assert all(bool((value == 1).all()) for value in loaded.module.state_dict().values())
    assert loaded.notes == (f"the state dict under {key!r} was taken",)


@pytest.mark.parametrize(
    "state",
    [
        weights(),
        prefixed("_orig_mod.module.", weights()),
        prefixed("_fsdp_wrapped_module.", weights()),
        {n.replace("conv.", "conv._checkpoint_wrapped_module."): t for n, t in weights().items()},
        {"n_averaged": torch.tensor(7), **prefixed("module.", weights())},
        {"n_averaged": torch.tensor(7), **prefixed("module.module.", weights())},
    ],
)
def test_a_state_dict_alone(folder: Path, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "m.pt")
    loaded = load(tmp_path / "m.pt", factory=factory(folder))
    assert loaded.module is not None
    assert all(bool((value == 1).all()) for value in loaded.module.state_dict().values())
    assert loaded.notes == ()


def test_an_averaged_model_of_torchs_own(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    torch.save(AveragedModel(nn.Linear(2, 3)).state_dict(), tmp_path / "m.pt")
    assert load(tmp_path / "m.pt", factory=factory(tmp_path, "bare")).module is not None


def test_names_without_a_dot(folder: Path, tmp_path: Path) -> None:
    state = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    for content in (state, {"model": state, "optimizer": adam(), "loss": torch.tensor(1.0)}):
        torch.save(content, tmp_path / "m.pt")
        load(tmp_path / "m.pt", factory=factory(folder, "bare"))


SEVERAL = {
    "timm": {"state_dict": weights(1), "state_dict_ema": weights(2), "optimizer": adam(), "epoch": 1},
    "BasicSR": {"params": weights(1), "params_ema": weights(2)},
    "nested": {"models": {"teacher": weights(1), "student": weights(2)}},
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_that_fit_the_user_chooses(folder: Path, tmp_path: Path, name: str) -> None:
    torch.save(SEVERAL[name], tmp_path / "m.pt")
    keys = list(SEVERAL[name])[:2] if name != "nested" else ["models.teacher", "models.student"]
    with pytest.raises(SourceError, match=f"holds 2 state dicts, and 2 of them fit.*{keys[0]}, {keys[1]}") as caught:
        load(tmp_path / "m.pt", factory=factory(folder))
    assert caught.value.hint == f"Choose one with --state-key, such as --state-key {keys[0]}."
    for key, fill in zip(keys, (1, 2), strict=True):
        chosen = load(tmp_path / "m.pt", factory=factory(folder), state_key=key)
        assert chosen.module is not None
        assert float(chosen.module.state_dict()["head.bias"][0]) == fill
    with pytest.raises(UsageError, match="no state dict under 'none'"):
        load(tmp_path / "m.pt", factory=factory(folder), state_key="none")


def test_of_several_the_one_that_fits_is_taken(folder: Path, tmp_path: Path) -> None:
    torch.save({"generator": weights(), "discriminator": {"0.weight": torch.ones(5, 3, 3, 3)}}, tmp_path / "m.pt")
    loaded = load(tmp_path / "m.pt", factory=factory(folder))
    assert loaded.notes == (
        "the state dict under 'generator' was taken",
        "it alone fits the factory's module: discriminator left out",
    )
    with pytest.raises(SourceError, match="2 state dicts, and none of them fit"):
        load(tmp_path / "m.pt", factory=factory(folder, "bare"))
    # One that is chosen says what does not fit.
    with pytest.raises(SourceError, match="does not fit the module; 4 missing"):
        load(tmp_path / "m.pt", factory=factory(folder), state_key="discriminator")


def test_the_part_of_a_training_module_that_fits(folder: Path, tmp_path: Path) -> None:
    state = {**prefixed("model.", weights()), "loss.weight": torch.ones(2), "metric.total": torch.ones(())}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "m.pt")
    loaded = load(tmp_path / "m.pt", factory=factory(folder))
    assert loaded.notes[1] == "the tensors below 'model' are the factory's module: loss, metric left out"


@pytest.mark.parametrize("key", ["model", "model.conv"])
def test_a_key_where_there_is_nothing_to_choose(folder: Path, tmp_path: Path, key: str) -> None:
    torch.save(weights(), tmp_path / "m.pt")
    for source in (tmp_path / "m.pt", None):
        with pytest.raises(UsageError) as caught:
            load(source, factory=factory(folder), state_key=key)
        assert caught.value.hint == "Leave --state-key out."


@pytest.mark.parametrize(
    "content",
    [
        {"optimizer": adam(), "epoch": 3},
        {**weights(), "ema": weights()},
        {**weights(), "lr": 0.1},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": weights()}}}}}}}},
    ],
)
def test_what_holds_none(folder: Path, tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(SourceError):
        load(tmp_path / "m.pt", factory=factory(folder))


def test_a_checkpoint_that_refers_to_itself(folder: Path, tmp_path: Path) -> None:
    inner: dict[str, Any] = {f"k{i}": None for i in range(300)}
    for _ in range(6):
        inner = dict.fromkeys(inner, inner)
    inner["self"] = inner
    torch.save({"many": inner, "model": weights()}, tmp_path / "m.pt")
    assert load(tmp_path / "m.pt", factory=factory(folder)).notes


def test_a_pickled_module_in_a_dict(folder: Path, tmp_path: Path) -> None:
    torch.save({"epoch": -1, "model": nn.Linear(2, 3), "ema": None, "train_args": {}}, tmp_path / "m.pt")
    loaded = load(tmp_path / "m.pt", trust=True)
    assert isinstance(loaded.module, nn.Linear)
    assert loaded.notes[0] == "the module under 'model' was taken"
    torch.save({"model": nn.Linear(2, 3), "ema": nn.Linear(2, 3)}, tmp_path / "m.pt")
    with pytest.raises(SourceError, match="each of a pickled module: model, ema"):
        load(tmp_path / "m.pt", trust=True)
    loaded = load(tmp_path / "m.pt", trust=True, state_key="ema")
    assert loaded.notes[0] == "the module under 'ema' was taken"
    # With a factory it is the weights that count.
    assert load(tmp_path / "m.pt", trust=True, state_key="ema", factory=factory(folder, "bare")).kind == "state_dict"


def test_the_choice_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    torch.save(SEVERAL["timm"], tmp_path / "m.pt")
    made = ("--factory", factory(folder), "--input-shape", "2x3x8x8")
    failed = run("inspect", tmp_path / "m.pt", *made)
    assert failed.exit_code == 4
    assert "--state-key state_dict" in failed.stderr
    assert run("inspect", tmp_path / "m.pt", *made, "--state-key", "state_dict_ema").exit_code == 0


def test_the_index_of_a_checkpoint_in_files(tmp_path: Path) -> None:
    index = {"metadata": {}, "weight_map": {f"l{i}.weight": f"model-{i}-of-3.safetensors" for i in range(3)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="index of a checkpoint in 3 files") as caught:
        load(tmp_path / "model.safetensors.index.json")
    assert "one file" in caught.value.hint
    with pytest.raises(SourceError) as caught:
        load(tmp_path)
    assert "model.safetensors.index.json" in caught.value.hint
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(SourceError):
        load(tmp_path / "model.safetensors.index.json")


def saved_elsewhere(tmp_path: Path, code: str, *, script: str = "train.py") -> None:
    """Save a module in another process, whose own classes it is of."""
    (tmp_path / script).write_text(code)
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True)


def test_a_module_whose_class_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "zoo_of_mine.py").write_text(NET)
    saved_elsewhere(tmp_path, "import torch, zoo_of_mine\ntorch.save(zoo_of_mine.Net(), 'm.pt')")
    with pytest.raises(SourceError, match="Python module zoo_of_mine, which is not found") as caught:
        load(tmp_path / "m.pt", trust=True)
    assert f"PYTHONPATH={tmp_path} spdexport" in caught.value.hint
    # And that is true.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "spdexport", "inspect", "m.pt", "--trust", "--input-shape", "2x3x8x8"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "PATH": ""},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "zoo_of_mine.py").unlink()
    with pytest.raises(SourceError) as caught:
        load(tmp_path / "m.pt", trust=True)
    assert "PYTHONPATH=FOLDER" in caught.value.hint


def test_a_module_whose_class_was_in_a_script(tmp_path: Path) -> None:
    saved_elsewhere(tmp_path, NET + "\nimport torch\ntorch.save(Net(), 'm.pt')")
    with pytest.raises(SourceError, match="class Net was saved from a script") as caught:
        load(tmp_path / "m.pt", trust=True)
    assert "--factory SCRIPT.py:Net" in caught.value.hint


class Ran:
    """Touches a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.marker)!r}, 'w')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_stands_beside_it_is_left_out_and_never_run(folder: Path, tmp_path: Path, zipped: bool) -> None:
    """Arguments, metrics of numpy and whatever else a script saved are no reason to refuse the weights beside them."""
    marker = tmp_path / "ran"
    saved = {
        "state_dict": weights(), "args": argparse.Namespace(lr=0.1, out=Path("/x")), "best": np.float64(0.5),
        "curve": np.arange(3.0), "when": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "hook": Ran(marker),
    }  # fmt: skip
    torch.save(saved, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    loaded = load(tmp_path / "c.pt", factory=factory(folder))
    assert loaded.module is not None
    assert all(torch.equal(value, weights()[name]) for name, value in loaded.module.state_dict().items())
    (note,) = [note for note in loaded.notes if "no plain data" in note]
    assert "argparse.Namespace" in note
    assert not marker.exists()


@pytest.mark.parametrize("saved", [{"model": Ran}, {"state_dict": {"conv.weight": torch.ones(1), "x": Ran}}, Ran])
def test_what_is_looked_for_is_not_left_out(folder: Path, tmp_path: Path, saved: Any) -> None:
    marker = tmp_path / "ran"

    def filled(value: Any) -> Any:
        if value is Ran:
            return Ran(marker)
        return {name: filled(inner) for name, inner in value.items()} if isinstance(value, dict) else value

    torch.save(filled(saved), tmp_path / "c.pt")
    with pytest.raises(PickleRefusedError, match=r"asks for builtins\.exec") as refused:
        load(tmp_path / "c.pt", factory=factory(folder))
    assert "--trust" in refused.value.hint
    assert not marker.exists()

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spdexport.errors import ComponentsError, PickleRefusedError
from spdexport.sources.spd import from_state_dict, load_components, read_run


def test_a_run_its_checkpoint_and_a_factor_file_agree(
    run: Path, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    factors = {k.removeprefix("_components."): t for k, t in state.items() if k[-2:] in (".V", ".U")}
    save_file(factors, tmp_path / "f.safetensors")
    np.savez(tmp_path / "f.npz", **{k: t.numpy() for k, t in factors.items()})
    torch.save(factors, tmp_path / "f.pt")
    checkpoint = run / "model_4000.pth"
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    for path in (run, checkpoint):
        found = load_components(path)
        assert (found.kind, found.layout, found.path, found.sha256) == ("spd", "current", checkpoint, digest)
    for path in (tmp_path / "f.safetensors", tmp_path / "f.npz", tmp_path / "f.pt"):
        read = load_components(str(path))
        assert (read.kind, read.layout, read.path, read.dashed) == ("file", None, path, False)
        assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert list(read.target) == []
        assert set(read.components) == set(found.components)
        for name, raw in read.components.items():
            assert torch.equal(raw.V, found.components[name].V)
            assert torch.equal(raw.U, found.components[name].U)


def test_the_last_checkpoint_is_the_one_with_the_largest_number(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for step in (0, 900, 4000, 10000):
        marked = state | {"_components.fc2.V": torch.full((64, 32), float(step))}
        torch.save(marked, tmp_path / f"model_{step}.pth")
    torch.save({}, tmp_path / "model_99999_old.pth")
    found = read_run(tmp_path)
    assert found.path == tmp_path / "model_10000.pth"
    assert found.components["fc2"].V[0, 0] == 10000


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    with pytest.raises(ComponentsError, match=r"no SPD run: it holds no model_\{step\}\.pth") as caught:
        load_components(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_run_whose_checkpoint_is_something_else(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.ones(2), "conv1.bias": torch.ones(2)}, tmp_path / "model_1.pth")
    with pytest.raises(ComponentsError, match=r"none of the key layouts of SPD; its keys begin with conv1\.weight"):
        read_run(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ComponentsError) as caught:
        load_components(tmp_path / "none.safetensors")
    assert "none.safetensors" in caught.value.where


class Planted:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("planted"),)


def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.V": Planted()}, tmp_path / "model_1.pth")
    for path in (tmp_path, tmp_path / "model_1.pth"):
        with pytest.raises(PickleRefusedError):
            load_components(path)
    assert not Path("planted").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no components: it is empty"),
        ({"conv1.weight": torch.ones(2)}, r"no components: conv1\.weight"),
        ({"a.V": torch.ones(2, 1), "a.U": torch.ones(1, 2), "a.u": torch.ones(1)}, r"neither V nor U of a layer: a\.u"),
        ({"V": torch.ones(2, 1), "U": torch.ones(1, 2)}, "no components: U, V"),
        ({"a.V": torch.ones(2, 1)}, r"a has V \(2, 1\) but no U"),
        ({"a.U": torch.ones(1, 2)}, r"a has U \(1, 2\) but no V"),
        ({"a.V": torch.ones(2), "a.U": torch.ones(1, 2)}, r"V \(2,\) and U \(1, 2\), with 1 and 2 axes, not 2 or 3"),
        ({"a.V": torch.ones(1, 2, 1), "a.U": torch.ones(1, 2)}, "with 3 and 2 axes"),
        (
            {"a.V": torch.ones(2, 3), "a.U": torch.ones(4, 2)},
            r"V \(2, 3\) and U \(4, 2\): 3 components in V and 4 in U",
        ),
        ({"a.V": torch.ones(2, 2, 3), "a.U": torch.ones(4, 3, 2)}, "2 groups in V and 4 in U"),
        ({"a.V": torch.ones(2, 0), "a.U": torch.ones(0, 2)}, "nothing is in them"),
        ({"a.V": torch.tensor([[1.0], [torch.nan]]), "a.U": torch.ones(1, 2)}, r"V of a.*NaN or infinity \(1 values\)"),
        ({"a.V": torch.ones(2, 1), "a.U": torch.tensor([[torch.inf]])}, "U of a.*NaN or infinity"),
        ({"a.V": torch.ones(2, 1, dtype=torch.int64), "a.U": torch.ones(1, 2)}, "V of a.*torch.int64, not of a float"),
    ],
)
def test_a_factor_file_that_is_not_usable(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    path = tmp_path / "f.safetensors"
    save_file(tensors, path)
    with pytest.raises(ComponentsError, match=message) as caught:
        load_components(path)
    assert caught.value.where.startswith(str(path))


def test_a_checkpoint_that_is_not_usable(state: dict[str, torch.Tensor]) -> None:
    without = {k: t for k, t in state.items() if k != "_components.conv2.U"}
    with pytest.raises(ComponentsError, match=r"conv2 has V \(144, 64\) but no U") as caught:
        from_state_dict(without, None)
    assert caught.value.where == "the SPD checkpoint, layer conv2"
    with pytest.raises(ComponentsError, match="with 3 and 3 axes, not 2"):
        from_state_dict(
            state | {"_components.fc2.V": torch.ones(1, 64, 32), "_components.fc2.U": torch.ones(1, 32, 10)}, None
        )
    with pytest.raises(ComponentsError, match=r"U of fc2.*NaN"):
        from_state_dict(state | {"_components.fc2.U": torch.full((32, 10), torch.nan)}, None)

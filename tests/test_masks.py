from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spdexport.conv import Skipped
from spdexport.errors import MaskError, PickleRefusedError, UsageError
from spdexport.factors import Factors
from spdexport.masks import MaskSet, fit_masks, read_masks

RUN = Path(__file__).parents[1] / "examples" / "01_digits" / "run"


def factors(components: int, *, groups: int = 0) -> Factors:
    lead = (groups,) if groups else ()
    return Factors(V=np.ones((*lead, 3, components), np.float32), U=np.ones((*lead, components, 2), np.float32))


def masks(**values: object) -> MaskSet:
    return MaskSet(values={n: np.asarray(v, dtype=np.float64) for n, v in values.items()}, path=Path("m.npz"))


def write(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "m.safetensors")
    return folder / "m.safetensors"


def test_the_masks_of_the_digits_run() -> None:
    path = RUN / "fixed_masks.safetensors"
    read = read_masks(path, threshold=None)
    alive = {
        name: layer["alive"] for name, layer in json.loads((RUN / "stats.json").read_text()).items() if "C" in layer
    }
    assert {name: int((mask != 0).sum()) for name, mask in read.values.items()} == alive
    assert all(mask.dtype == np.float64 for mask in read.values.values())
    assert (read.path, read.threshold) == (path, None)
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_kind_of_file_gives_the_same_masks(tmp_path: Path) -> None:
    values = {"a": [0.0, 0.25, -1.5], "b.c": [1.0, 0.0, 2.0]}
    tensors = {name: torch.tensor(v) for name, v in values.items()}
    (tmp_path / "m.json").write_text(json.dumps(values))
    np.savez(tmp_path / "m.npz", **{name: np.array(v) for name, v in values.items()})
    torch.save(tensors, tmp_path / "m.pt")
    save_file(tensors, tmp_path / "m.safetensors")
    for name in ("m.json", "m.npz", "m.pt", "m.safetensors"):
        read = read_masks(str(tmp_path / name), threshold=None)
        assert {k: v.tolist() for k, v in read.values.items()} == values


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_masks_of_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    path = write(tmp_path, a=torch.tensor([1, 0, 1]).to(dtype))
    for threshold in (None, 0.5):
        assert read_masks(path, threshold=threshold).values["a"].tolist() == [1.0, 0.0, 1.0]


def test_a_threshold_keeps_what_is_greater(tmp_path: Path) -> None:
    # 0.1 in float32 is a little more than 0.1 in float64: it is the threshold itself all the same.
    path = write(tmp_path, a=torch.tensor([0.0, 0.05, 0.1, 0.11, 5.0, -1.0]))
    read = read_masks(path, threshold=0.1)
    assert read.threshold == 0.1
    assert read.values["a"].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_that_is_no_number(tmp_path: Path, threshold: float) -> None:
    with pytest.raises(UsageError, match="not a finite number") as caught:
        read_masks(write(tmp_path, a=torch.ones(2)), threshold=threshold)
    assert caught.value.where == "--mask-threshold"


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_masks_that_are_not_finite(tmp_path: Path, value: float, threshold: float | None) -> None:
    path = write(tmp_path, a=torch.tensor([1.0, value]))
    with pytest.raises(MaskError, match=r"mask of a holds NaN or infinity \(1 of 2 values\)") as caught:
        read_masks(path, threshold=threshold)
    assert caught.value.where == f"{path}, layer a"


def test_masks_that_cannot_be_one_for_each_component(tmp_path: Path) -> None:
    for mask in (torch.ones(()), torch.ones(1, 1, 1, 1, 3)):
        with pytest.raises(MaskError, match=r"mask of a has shape .* not \(C,\), or \(groups, C\)") as caught:
            read_masks(write(tmp_path, a=mask), threshold=None)
        assert "masks for each sample are inputs: convert --runtime-masks" in caught.value.hint
    with pytest.raises(MaskError, match="mask of a is complex"):
        read_masks(write(tmp_path, a=torch.ones(3, dtype=torch.complex64)), threshold=None)


def test_an_empty_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="holds no masks"):
        read_masks(write(tmp_path), threshold=None)
    with pytest.raises(MaskError) as caught:
        read_masks(tmp_path / "none.npz", threshold=None)
    assert "none.npz" in caught.value.where


class Planted:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("planted"),)


def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Planted()}, tmp_path / "m.pt")
    with pytest.raises(PickleRefusedError):
        read_masks(tmp_path / "m.pt", threshold=None)
    assert not Path("planted").exists()


def test_masks_are_put_into_the_factors_they_name() -> None:
    given = {"a": factors(3), "b": factors(3), "g": factors(3, groups=2)}
    fitted = fit_masks(masks(a=[0, 0.5, -1], g=[[1, 0, 0], [1, 1, 0]]), given)
    assert list(fitted) == ["a", "b", "g"]
    assert fitted["a"].mask.tolist() == [0, 0.5, -1]
    assert fitted["a"].live == 2
    assert fitted["b"] is given["b"]
    assert fitted["g"].mask.shape == (2, 3)
    assert given["a"].mask is None


def test_a_mask_reaches_all_calls_of_its_module() -> None:
    fitted = fit_masks(masks(a=[1, 0, 1]), {"b": factors(3), "a#2": factors(3), "a#3": factors(3)})
    assert {name for name, f in fitted.items() if f.mask is not None} == {"a#2", "a#3"}


def test_a_mask_may_name_a_single_call() -> None:
    fitted = fit_masks(MaskSet(values={"a#2": np.zeros(3)}), {"a": factors(3), "a#2": factors(3)})
    assert {name for name, f in fitted.items() if f.mask is not None} == {"a#2"}


def test_a_mask_of_the_wrong_length() -> None:
    with pytest.raises(MaskError, match="mask of a has length 4, and the layer has 3 components") as caught:
        fit_masks(masks(a=[1, 1, 1, 1]), {"a": factors(3)})
    assert caught.value.where == "m.npz, layer a"
    with pytest.raises(MaskError, match=r"mask of a has shape \(2, 4\), and the layer has \(groups, comp.* \(2, 3\)"):
        fit_masks(masks(a=np.ones((2, 4))), {"a": factors(3, groups=2)})


def test_a_mask_with_the_wrong_axes() -> None:
    with pytest.raises(MaskError, match=r"mask of a has shape \(5, 4\), not \(3,\)") as caught:
        fit_masks(masks(a=np.ones((5, 4))), {"a": factors(3)})
    assert "for each component at each output location (height, width, C)" in caught.value.hint
    with pytest.raises(MaskError, match=r"mask of a has shape \(3,\), not \(2, 3\)"):
        fit_masks(masks(a=[1, 1, 1]), {"a": factors(3, groups=2)})


def test_a_mask_for_no_layer() -> None:
    with pytest.raises(MaskError, match="mask for conv12, and the model has no such layer") as caught:
        fit_masks(masks(conv12=[1]), {"conv1": factors(1)}, layers=("conv2", "fc"))
    assert caught.value.hint in ("Did you mean conv1 or conv2?", "Did you mean conv2 or conv1?")
    with pytest.raises(MaskError) as caught:
        fit_masks(masks(zzzz=[1]), {"conv1": factors(1)}, layers=("fc",))
    assert caught.value.hint == "The names are conv1, fc."


def test_a_mask_for_a_layer_without_components() -> None:
    with pytest.raises(MaskError, match="mask for fc, and the layer has no components") as caught:
        fit_masks(masks(fc=[1]), {"conv1": factors(1)}, layers=("conv1", "fc"))
    assert caught.value.hint.endswith("Layers with components: conv1.")


def test_a_mask_for_a_layer_without_components_has_the_reason() -> None:
    left = [Skipped(name="dw", kind="conv2d", reason="each group's weight is of rank one already")]
    with pytest.raises(MaskError, match="has no components: each group's weight is of rank one already") as caught:
        fit_masks(masks(dw=[1]), {"conv1": factors(1)}, layers=("conv1", "dw"), left=left)
    assert "--exclude dw" in caught.value.hint


def test_the_mask_of_an_excluded_layer_is_passed_over() -> None:
    masks = MaskSet(values={"fc": np.ones(3)})
    assert fit_masks(masks, {}, layers=["fc"], excluded=lambda name: name == "fc") == {}


def test_a_mask_for_each_location_stands_beside_the_one_for_each_component() -> None:
    values = np.random.default_rng(0).random((4, 5, 3))
    fitted = fit_masks(masks(a=values), {"a": factors(3)})["a"]
    np.testing.assert_array_equal(fitted.located, values)
    assert fitted.mask is None
    grouped = fit_masks(masks(a=np.ones((4, 5, 6))), {"a": factors(3, groups=2)})["a"]
    assert grouped.located.shape == (4, 5, 6)

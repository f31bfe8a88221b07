import pytest
import torch
from torch import nn

from spdexport.errors import SourceError
from spdexport.loading.checkpoints import find_states
from spdexport.loading.state_dict import fit


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)


class WithChild(nn.Module):
    """Really has a child called module, and a twin beside it."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.other = nn.Linear(2, 2)


def _same(module, state) -> bool:
    return all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), state.values(), strict=True))


def _prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def _names(content):
    (found,) = find_states(content, "f")
    return list(found.state)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_dicts_are_seen_through(key):
    state = Net().state_dict()
    wrapped = {"epoch": 3, "optimizer": {"state": {}}, key: dict(state), "hyper_parameters": {"lr": 0.1}}
    assert _names(wrapped) == list(state)
    assert _names({"model": {"state_dict": dict(state)}}) == list(state)
    assert _names(state) == list(state)


def test_a_layer_called_model_is_no_wrapper():
    state = {"model": torch.ones(1), "x": torch.ones(2)}
    assert _names(state) == ["model", "x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(2), "holds no state dict, but a Tensor"),
        ({"epoch": 3}, "holds no state dict, but a dict of epoch"),
        ({"a": torch.ones(1), "b": 3}, "entries that are not tensors: b"),
        ([], "holds no state dict, but a list"),
    ],
)
def test_what_is_no_state_dict(content, message):
    with pytest.raises(SourceError, match=message) as caught:
        find_states(content, "file.pt")
    assert caught.value.where == "file.pt"


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod."]
)
def test_prefixes_of_all_names(prefix):
    state = Net().state_dict()
    assert _same(fit(Net(), _prefixed(state, prefix), where="f"), state)


@pytest.mark.parametrize("inner", ["layer._orig_mod.", "layer.module.", "layer._orig_mod.module."])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_prefixes_in_the_middle(inner, prefix):
    state = Net().state_dict()
    changed = _prefixed({name.replace("layer.", inner): value for name, value in state.items()}, prefix)
    assert _same(fit(Net(), changed, where="f"), state)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_child_called_module_keeps_its_name(prefix):
    state = WithChild().state_dict()
    assert _same(fit(WithChild(), _prefixed(state, prefix), where="f"), state)


def test_a_module_nested_in_modules():
    module = nn.DataParallel(WithChild())  # names: module.module.weight, module.other.weight
    state = WithChild().state_dict()
    assert _same(fit(module, state, where="f"), state)


def test_the_module_may_be_compiled():
    state = Net().state_dict()
    assert _same(fit(torch.compile(Net()), state, where="f"), state)


def test_all_three_faults_are_named_with_counts():
    state = dict(Net().state_dict())
    del state["head.bias"]
    state["head.weight"] = torch.ones(3, 4)
    state.update({f"extra.{i}": torch.ones(1) for i in range(7)})
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(SourceError) as caught:
        fit(module, state, where="file.pt")
    what = caught.value.what
    assert "1 missing: head.bias;" in what
    assert "7 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more;" in what
    assert "1 of another shape: head.weight (file 3x4, module 2x4)" in what
    assert _same(module, before)


def test_old_checkpoints_without_batch_counters_fit():
    state = {name: value for name, value in Net().state_dict().items() if "num_batches" not in name}
    fit(Net(), state, where="f")

"""Write the files of this folder, with peft 0.21.2 and lycoris-lora: run it in an environment that has both.

    python write_adapters.py [NAME ...]

With names, only those files are written, and their weights put beside the others'. ``model.safetensors`` has the
weights of ``Net``, ``grouped.safetensors`` those of ``Grouped``; each other file an adapter as its library saves it, in
a folder of its own where peft writes a configuration beside it; ``merged.safetensors`` the weights that each layer has
with an adapter on it, called ``<adapter>/<parameter>``, those of convolutions with all channels for each output. They
are read off what the adapted layer gives for impulses, in float64: the merge of LyCORIS itself scales a LoHa and a LoKr
twice where alpha is not the rank, and its forward pass does not.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

HERE = Path(__file__).parent


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Conv2d(6, 6, 3, groups=6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def randomized(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.uniform_(-0.5, 0.5, generator=generator)


def seen(net: nn.Module, x: torch.Tensor, model: type[nn.Module] = Net) -> dict[str, torch.Tensor]:
    """The weights and biases that the layers of an adapted network act with, from impulses; ``x`` runs through it."""
    found = {}
    for name, plain in model().named_modules():
        layer = net.get_submodule(name)
        if isinstance(plain, nn.Linear):
            bias = layer(torch.zeros(1, plain.in_features).double())[0]
            found[f"{name}.weight"] = (layer(torch.eye(plain.in_features).double()) - bias).T
        elif isinstance(plain, nn.Conv2d):
            kernel, at, channels = plain.kernel_size[0], 1, plain.in_channels
            start = plain.stride[0] * at - plain.padding[0]
            bias = layer(torch.zeros(1, channels, 7, 7).double())[0, :, at, at]
            weight = torch.zeros(plain.out_channels, channels, kernel, kernel).double()
            for i in range(channels):
                for row in range(kernel):
                    for column in range(kernel):
                        impulse = torch.zeros(1, channels, 7, 7).double()
                        impulse[0, i, start + row, start + column] = 1
                        weight[:, i, row, column] = layer(impulse)[0, :, at, at] - bias
            found[f"{name}.weight"] = weight
        else:
            continue
        found[f"{name}.bias"] = bias
    net(x)
    return {key: tensor.detach().float() for key, tensor in found.items()}


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def example(model: type[nn.Module]) -> torch.Tensor:
    return torch.rand(1, 4 if model is Grouped else 3, 9, 9).double()


def main(names: list[str]) -> None:
    import lycoris
    import peft

    torch.manual_seed(0)
    net = Net().eval()
    merged: dict[str, torch.Tensor] = {}
    if names:
        net.load_state_dict(load_file(HERE / "model.safetensors"))
        merged |= load_file(HERE / "merged.safetensors")
    else:
        save_file(weights(net), HERE / "model.safetensors")
    targets = ["body.0", "body.2", "head"]
    configurations = {
        "lora": peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets),
        "rslora": peft.LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=targets),
        "loha": peft.LoHaConfig(r=2, alpha=3, target_modules=targets, use_effective_conv2d=True),
        "lokr": peft.LoKrConfig(r=2, alpha=3, target_modules=targets, use_effective_conv2d=True),
        "dora": peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["head"]),
        "dora_convs": peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=targets),
        "lora_groups": peft.LoraConfig(r=6, lora_alpha=3, target_modules=["body.0", "body.1"]),
        "loha_groups": peft.LoHaConfig(r=2, alpha=3, target_modules=["body.0"], use_effective_conv2d=True),
        "patterns": peft.LoraConfig(
            r=2,
            lora_alpha=3,
            target_modules=targets,
            rank_pattern={"0": 3, r"body\.\d": 4, "ody.2": 1},
            alpha_pattern={"^body.0": 5, "(head|tail)": 7},
        ),
        "patterns_rslora": peft.LoraConfig(
            r=2, lora_alpha=3, use_rslora=True, target_modules=targets, rank_pattern={"^head": 3, "bo.*": 4}
        ),
        "patterns_loha": peft.LoHaConfig(
            r=2,
            alpha=3,
            target_modules=targets,
            use_effective_conv2d=True,
            rank_pattern={"head": 3},
            alpha_pattern={".*2": 5},
        ),
        "patterns_lokr": peft.LoKrConfig(
            r=2,
            alpha=3,
            target_modules=targets,
            use_effective_conv2d=True,
            decompose_both=True,
            rank_pattern={"body.0": 1},
            alpha_pattern={"head": 5},
        ),
        "biased": peft.LoraConfig(r=2, lora_alpha=3, lora_bias=True, target_modules=targets),
    }
    grouped = Grouped().eval()
    if not names or "peft_lora_groups" in names:
        save_file(weights(grouped), HERE / "grouped.safetensors")
    for seed, (name, configuration) in enumerate(configurations.items()):
        if names and f"peft_{name}" not in names:
            continue
        kind = Grouped if name.endswith("groups") else Net
        model = peft.get_peft_model(copy.deepcopy(grouped if kind is Grouped else net), configuration)
        randomized(model, seed)
        model.save_pretrained(HERE / f"peft_{name}")
        (HERE / f"peft_{name}/README.md").unlink(missing_ok=True)
        adapted = model.double().get_base_model()
        merged |= {f"peft_{name}/{key}": t for key, t in seen(adapted, example(kind), kind).items()}
    kinds = {
        "locon": {"algo": "locon", "use_tucker": True},
        "loha": {"algo": "loha", "use_tucker": True},
        "loha_flat": {"algo": "loha"},
        "lokr": {"algo": "lokr", "factor": 2},
        "lokr_whole": {"algo": "lokr", "factor": 2, "full_matrix": True},
        "dora": {"algo": "locon", "weight_decompose": True},
        "dora_inputs": {"algo": "locon", "weight_decompose": True, "wd_on_out": False},
        "dora_loha": {"algo": "loha", "weight_decompose": True},
    }
    for seed, (name, options) in enumerate(kinds.items()):
        if names and f"lycoris_{name}" not in names:
            continue
        model = copy.deepcopy(net)
        lycoris.LycorisNetwork.apply_preset(
            {"target_module": [], "target_name": ["body.0", "body.2", "head"], "name_algo_map": {}}
        )
        network = lycoris.create_lycoris(model, 1.0, linear_dim=2, linear_alpha=3, conv_dim=2, conv_alpha=3, **options)
        network.apply_to()
        randomized(network, 10 + seed)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, HERE / f"lycoris_{name}.safetensors")
        network.double(), model.double()
        merged |= {f"lycoris_{name}/{key}": t for key, t in seen(model, example(Net)).items()}
    save_file({k: v.contiguous() for k, v in merged.items()}, HERE / "merged.safetensors")
    (HERE / "versions.json").write_text(json.dumps({"peft": peft.__version__, "torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

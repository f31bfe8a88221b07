"""The causal-importance function that a run has for all of its layers, from the parameters in its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from spdexport.gates import Attention, Block, GateLayer, GlobalFunction, GlobalKind, Stage
from spdexport.gates.global_functions import LONGEST
from spdexport.sources.spd_layouts import INSERTED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array
    from spdexport.gates import Sigmoid
    from spdexport.sources.run_config import RunConfig

    Arrays = Mapping[str, Array]

NANO = "ci_fn."
"""What the names of nano's function begin with; others' begin so too, and go on."""

_ROPE_BASE = 10000.0
"""The base of nano's positions, where a configuration does not say."""


def global_function(
    arrays: Arrays, components: Mapping[str, int], config: RunConfig, sigmoid: Sigmoid, *, nano: bool
) -> GlobalFunction:
    """Read a function.

    Args:
        arrays: Its parameters, by the names behind the prefix that all have.
        components: C of each layer, by the model's own names, in the order of the model's modules.
        config: What the run says of it.
        sigmoid: What makes importances of what it gives.
        nano: Whether it is one of nano's code, which has plain linear layers.

    Raises:
        ValueError: Parameters are missing, do not fit, or what only the configuration has is not there.
    """
    # Layers are concatenated by the order of their names, those of the model and not the file's.
    names = tuple(sorted(components))
    sizes = tuple(components[name] for name in names)
    longest = config.number("max_len")
    stages: tuple[Stage, ...]
    if nano:
        kind, stages = GlobalKind.SHARED_TRANSFORMER, (_nano(arrays, names, sizes, config),)
    elif any(name.startswith("_input_projector.") for name in arrays):
        kind, stages = GlobalKind.SHARED_TRANSFORMER, (_transformer(arrays, names, sizes),)
    elif any(name.startswith("_inp_projectors.") for name in arrays):
        kind, stages = GlobalKind.REVERSE_RESIDUAL, _reverse_residual(arrays, components, config)
    else:
        kind = GlobalKind.SHARED_MLP
        stages = (Stage(layers=names, components=sizes, read=_mlp(_below(arrays, "layers."))),)
    return GlobalFunction(
        kind=kind, stages=stages, sigmoid=sigmoid, longest=LONGEST if longest is None else int(longest)
    )


def _below(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _one(arrays: Arrays, name: str) -> Array:
    if name not in arrays:
        raise ValueError(f"it has no parameter {name!r}, but {', '.join(list(arrays)[:4]) or 'none'}")
    return arrays[name]


def _affine(arrays: Arrays, prefix: str = "") -> GateLayer:
    return GateLayer(weight=_one(arrays, f"{prefix}W"), bias=_one(arrays, f"{prefix}b"))


def _linear(arrays: Arrays, prefix: str) -> GateLayer:
    """A linear layer as torch stores it: (out, in)."""
    return GateLayer(weight=_one(arrays, f"{prefix}weight").T, bias=_one(arrays, f"{prefix}bias"))


def _numbers(arrays: Arrays) -> list[int]:
    """The numbers that names begin with, in order."""
    return sorted({int(head) for name in arrays if (head := name.partition(".")[0]).isdecimal() and len(head) < 9})


def _mlp(arrays: Arrays) -> tuple[GateLayer, ...]:
    """Affine maps by number; those in between are activations without parameters."""
    if "W" in arrays:
        return (_affine(arrays),)
    return tuple(_affine(arrays, f"{number}.") for number in _numbers(arrays))


def _attention(arrays: Arrays, output: str = "out_proj", frequencies: Array | None = None) -> Attention:
    query, key, value, joined = (_one(arrays, f"{name}.weight") for name in ("q_proj", "k_proj", "v_proj", output))
    if frequencies is None:
        frequencies = _one(arrays, "rope.inv_freq")
    return Attention(query=query, key=key, value=value, output=joined, frequencies=frequencies)


def _transformer(arrays: Arrays, names: tuple[str, ...], sizes: tuple[int, ...]) -> Stage:
    blocks = _below(arrays, "_blocks.")
    return Stage(
        layers=names,
        components=sizes,
        norms_inputs=True,
        project=_affine(arrays, "_input_projector."),
        blocks=tuple(
            Block(attention=_attention(_below(blocks, f"{i}.attn.")), mlp=_mlp(_below(blocks, f"{i}.mlp.")))
            for i in _numbers(blocks)
        ),
        read=(_affine(arrays, "_output_head."),),
    )


def _nano(arrays: Arrays, names: tuple[str, ...], sizes: tuple[int, ...], config: RunConfig) -> Stage:
    """The transformer of nano's code, whose checkpoint holds no positions and no number of heads."""
    project = _linear(arrays, "proj_in.")
    size, heads = project.weight.shape[1], config.number("ci_n_heads")
    if heads is None or int(heads) < 1 or size % (2 * int(heads)):
        raise ValueError(f"a checkpoint of nano does not hold the number of heads, and {config.told} has a ci_n_heads")
    half = size // int(heads) // 2
    frequencies = (config.number("ci_rope_base") or _ROPE_BASE) ** (-np.arange(half) / half)
    blocks = _below(arrays, "blocks.")
    return Stage(
        layers=names,
        components=sizes,
        norms_inputs=True,
        project=project,
        blocks=tuple(
            Block(
                attention=_attention(_below(blocks, f"{i}.attn."), "o_proj", frequencies.astype(np.float32)),
                mlp=tuple(_linear(blocks, f"{i}.mlp.{j}.") for j in _numbers(_below(blocks, f"{i}.mlp."))),
            )
            for i in _numbers(blocks)
        ),
        read=(_linear(arrays, "proj_out."),),
    )


def _reverse_residual(arrays: Arrays, components: Mapping[str, int], config: RunConfig) -> tuple[Stage, ...]:
    """One stage for each group of layers; which layers a group has is in the configuration alone."""
    groups = _groups(tuple(components), config)
    stages = []
    for number, (name, layers) in enumerate(groups):
        safe = name.replace(".", "-")
        blocks: tuple[Block, ...] = ()
        if number < len(groups) - 1:
            block = Block(
                mlp=_mlp(_below(arrays, f"_transitions.{safe}.")),
                mlp_scale=_one(arrays, f"_transition_norms.{safe}.weight"),
            )
            if attention := _below(arrays, f"_attn_transitions.{safe}."):
                scale = _one(arrays, f"_attn_norms.{safe}.weight")
                block = replace(block, attention=_attention(attention), attention_scale=scale)
            blocks = (block,)
        stages.append(
            Stage(
                layers=layers,
                components=tuple(components[layer] for layer in layers),
                project=_affine(arrays, f"_inp_projectors.{safe}."),
                blocks=blocks,
                read=_mlp(_below(arrays, f"_readers.{safe}.")),
                read_scale=_one(arrays, f"_reader_norms.{safe}.weight"),
            )
        )
    return tuple(stages)


def _groups(layers: Sequence[str], config: RunConfig) -> list[tuple[str, tuple[str, ...]]]:
    """The groups of layers in the order in which they are gone through, each with its layers in their order.

    Raises:
        ValueError: The configuration tells none, or does not have each layer in one of them.
    """
    told = config.list("block_groups")
    groups: list[tuple[str, tuple[str, ...]]] = []
    ordered = _as_listed(layers, config)
    for group in told:
        if not isinstance(group, Mapping) or not isinstance(group.get("patterns"), list):
            raise ValueError(f"{config.told} has block_groups without patterns")
        patterns = [str(pattern) for pattern in group["patterns"]]
        found = [layer for pattern in patterns for layer in ordered if fnmatchcase(layer, pattern)]
        groups.append((str(group.get("name")), tuple(found)))
    named = [layer for _, found in groups for layer in found]
    if sorted(named) != sorted(layers):
        missing = [layer for layer in layers if named.count(layer) != 1]
        raise ValueError(
            f"its groups of layers are told by the configuration alone, and {config.told} has block_groups "
            f"{'without or twice ' + ', '.join(missing) if told else 'in it'}"
        )
    return groups


def _as_listed(layers: Sequence[str], config: RunConfig) -> list[str]:
    """Layers in the order of the patterns that name them in the configuration, those of one pattern as they are."""
    patterns = [
        f"{entry['module_pattern']}{suffix}"
        for key, suffix in (
            ("module_info", ""),
            ("decomposition_targets", ""),
            ("identity_module_info", f".{INSERTED}"),
        )
        for entry in config.list(key)
        if isinstance(entry, Mapping) and "module_pattern" in entry
    ]

    def place(layer: str) -> int:
        return next((i for i, pattern in enumerate(patterns) if fnmatchcase(layer, pattern)), len(patterns))

    return sorted(layers, key=place)

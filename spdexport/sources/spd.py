"""Reading components: from SPD checkpoints and run directories, and from files of V and U."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from spdexport.errors import ComponentsError
from spdexport.files.hashing import sha256_file
from spdexport.files.reading import reading
from spdexport.files.safetensors_header import read_metadata
from spdexport.files.sniff import read_text
from spdexport.files.tensors import read_tensors
from spdexport.sources.adapters import read_adapters
from spdexport.sources.chains import is_chain_file, read_chains
from spdexport.sources.components import ComponentSet, paired
from spdexport.sources.run_files import config_folders, last_checkpoint, last_orbax
from spdexport.sources.spd_gates import Gates
from spdexport.sources.spd_jax import read_jax
from spdexport.sources.spd_layouts import recognize, without_wrappers

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def load_components(path: str | Path) -> ComponentSet:
    """Read the components that a file or folder holds, told by its content.

    Args:
        path: An SPD run directory, an SPD checkpoint, or a file (safetensors, npz, weights-only pt) with tensors
            ``<layer>.V`` of shape (patch, C) and ``<layer>.U`` of shape (C, out), each with a leading group axis for
            layers with groups; or a file of chains (``sources/chains.py``), or the state dict of a module that
            ``factorize`` made; or a file of LoRA's kind (``sources/adapters.py``).

    Raises:
        ComponentsError: The file cannot be read, or holds no usable components; it names the layer and the shapes.
        PickleRefusedError: Reading it would run code that it brings.
    """
    path = Path(path)
    if path.is_dir():
        run = read_run(path)
        if run is None:
            raise ComponentsError(
                "The folder is no SPD run: it holds no model_{step}.pth, nor ckpts of JAX.",
                where=str(path),
                hint="Give the folder of a run, a checkpoint, or a file of <layer>.V and <layer>.U.",
            )
        return run
    tensors = read_tensors(path, error=ComponentsError)
    return from_state_dict(tensors, path) or _from_adapter_file(tensors, path) or _from_factor_file(tensors, path)


def read_run(path: str | Path) -> ComponentSet | None:
    """Read the last checkpoint of an SPD run directory, or None where it holds none.

    Checkpoints are ``model_{step}.pth`` and ``model_{step}.safetensors``, in the folder or in its ``export``; without
    those, what JAX saved in ``ckpts``.

    Raises:
        ComponentsError: The checkpoint is damaged, has no known key layout, or holds V and U that are not usable.
        PickleRefusedError: Reading it would run code that it brings.
    """
    path = Path(path)
    last = last_checkpoint(path)
    if last is None:
        saved = last_orbax(path)
        return None if saved is None else read_jax(saved)
    state = read_tensors(last, error=ComponentsError)
    components = from_state_dict(state, last)
    if components is None:
        raise ComponentsError(
            f"The checkpoint has none of the key layouts of SPD; its keys begin with {_some(state)}.",
            where=str(last),
            hint="Give a checkpoint that SPD wrote, or a file of <layer>.V and <layer>.U.",
        )
    return components


def from_state_dict(state: Mapping[str, torch.Tensor], path: Path | None) -> ComponentSet | None:
    """Return the components of an SPD checkpoint, or None where the keys are of no SPD layout.

    Args:
        state: The checkpoint's state dict.
        path: The file it was read from, which is hashed; None where there is none.

    Raises:
        ComponentsError: A layer has V without U, or V and U that are not finite or do not go together.
    """
    state = without_wrappers(state)
    layout = recognize(state)
    if layout is None:
        return None
    where = "the SPD checkpoint" if path is None else str(path)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    identity: dict[str, None] = {}
    for key, tensor in state.items():
        read = layout.read(key)
        if read is None:
            continue
        if read.identity:
            identity[read.layer] = None
        factors.setdefault(layout.inserted(read.layer) if read.identity else read.layer, {})[read.factor] = tensor
    components = paired(factors, axes=(2,), where=where)
    gates = Gates(
        state,
        {layer: int(raw.V.shape[-1]) for layer, raw in components.items()},
        layout=layout,
        folders=() if path is None else config_folders(path.parent),
        where=where,
    )
    return ComponentSet(
        kind="spd",
        components=components,
        gates=gates,
        dashed=layout.dashed,
        identity=tuple(identity),
        target=layout.dense(state),
        layout=layout.name,
        path=path,
        sha256=None if path is None else sha256_file(path),
    )


def _from_adapter_file(tensors: Mapping[str, torch.Tensor], path: Path) -> ComponentSet | None:
    """The adapters of a file; None where no name is one of an adapter's. peft's configuration is read beside it."""
    config: dict[str, object] | None = None
    beside = path.with_name("adapter_config.json")
    if beside.is_file():
        text = read_text(beside, error=ComponentsError, what="The configuration cannot be read", hint="Write it again.")
        with reading(beside, error=ComponentsError):
            config = json.loads(text)
        if not isinstance(config, dict):
            raise ComponentsError("The configuration is no JSON object.", where=str(beside), hint="Write it again.")
    adapters = read_adapters(tensors, config, str(path))
    if adapters is None:
        return None
    return ComponentSet(kind="file", components={}, adapters=adapters, path=path, sha256=sha256_file(path))


def _from_factor_file(tensors: Mapping[str, torch.Tensor], path: Path) -> ComponentSet:
    if is_chain_file(tensors):
        metadata = read_metadata(path, error=ComponentsError)
        chains = read_chains(tensors, metadata, str(path))
        return ComponentSet(kind="file", components={}, chains=chains, path=path, sha256=sha256_file(path))
    factors: dict[str, dict[str, torch.Tensor]] = {}
    others = []
    for key, tensor in tensors.items():
        layer, _, factor = key.rpartition(".")
        if layer and factor in ("V", "U"):
            factors.setdefault(layer, {})[factor] = tensor
        else:
            others.append(key)
    if not factors or others:
        fault = "neither V nor U of a layer" if factors else "no components"
        raise ComponentsError(
            f"The file holds {fault}: {_some(others)}." if others else "The file holds no components: it is empty.",
            where=str(path),
            hint="Give an SPD checkpoint, or a file whose tensors are called <layer>.V and <layer>.U.",
        )
    components = paired(factors, axes=(2, 3), where=str(path))
    return ComponentSet(kind="file", components=components, path=path, sha256=sha256_file(path))


def _some(keys: Mapping[str, object] | list[str]) -> str:
    names = list(keys)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")

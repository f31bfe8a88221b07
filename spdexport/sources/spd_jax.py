"""The components that SPD's JAX code saves: orbax checkpoints, read by ``tensorstore`` and without JAX.

A checkpoint has V and U of each site, ``components.vu.<site>.{0,1}``, or stacks of sites with equal shapes,
``components.stacks.<group>.{0,1}``, V of shape (stack, d_in, C) and U of shape (stack, C, d_out). Which entry of a
stack is which layer, and what experts' blocks belong to, is in the configuration alone. The dense weights are not
saved.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.arrays import to_torch
from spdexport.errors import ComponentsError, RuntimeMissingError
from spdexport.files.hashing import sha256_tensors
from spdexport.files.limits import check_limit, limit
from spdexport.files.reading import reading
from spdexport.files.sniff import read_text
from spdexport.sources.components import ComponentSet, paired
from spdexport.sources.run_config import read_config
from spdexport.sources.run_files import ORBAX_METADATA, config_folders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType

    import torch

    from spdexport.sources.run_config import RunConfig

_DAMAGED = "The checkpoint of JAX is damaged"
_AGAIN = "Copy the folder of the step again, with all that is in it."
_MOST_METADATA = 1 << 26
"""Bytes of a checkpoint's list of arrays; that of a run with 10,000 arrays has 4 MB."""

_FACTORS = {"0": "V", "1": "U"}
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_NO_GATES = "what JAX saves of causal-importance functions is not read"


def read_jax(folder: Path) -> ComponentSet:
    """Read the V and U that JAX saved in a folder.

    Args:
        folder: The one with ``_METADATA``: ``ckpts/{step}/decomposition``.

    Raises:
        RuntimeMissingError: ``tensorstore`` is not installed.
        ComponentsError: The folder is damaged, or does not tell which layer a V and U are of.
    """
    content = _metadata(folder)
    keys = _factor_keys(content, folder)
    store = _tensorstore()
    uses_ocdbt, driver = bool(content.get("use_ocdbt")), "zarr3" if content.get("use_zarr3") else "zarr"
    most = max(1 << 30, limit("unpacked") * sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()))
    factors: dict[str, dict[str, torch.Tensor]] = {}
    stacks: dict[str, dict[str, torch.Tensor]] = {}
    for names in keys:
        kind, name, factor = names[-3:]
        with reading(f"{folder}, {name}", error=ComponentsError, what=_DAMAGED, hint=_AGAIN):
            tensor = _read(store, folder, names, driver, uses_ocdbt, most)
        (factors if kind == "vu" else stacks).setdefault(name, {})[_FACTORS[factor]] = tensor
    config = read_config(*config_folders(folder)) if stacks else None
    for group, parts in stacks.items():
        assert config is not None, "read where there are stacks"
        factors.update(_unstacked(group, parts, config, folder))
    components = paired(factors, axes=(2,), where=str(folder))
    return ComponentSet(
        kind="spd",
        components=components,
        layout="JAX",
        path=folder,
        sha256=sha256_tensors({f"{x}.{f}": t for x, pair in factors.items() for f, t in pair.items()}),
        no_gates=_NO_GATES,
    )


def _metadata(folder: Path) -> Mapping[str, Any]:
    path = folder / ORBAX_METADATA
    if path.stat().st_size > _MOST_METADATA:
        raise ComponentsError(f"{_DAMAGED}: its list of arrays is too long.", where=str(path), hint=_AGAIN)
    text = read_text(path, error=ComponentsError, what=_DAMAGED, hint=_AGAIN)
    with reading(path, error=ComponentsError, what=_DAMAGED, hint=_AGAIN):
        content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(content.get("tree_metadata"), dict):
        raise ComponentsError(f"{_DAMAGED}: its metadata hold no tree.", where=str(path), hint=_AGAIN)
    return content


def _factor_keys(content: Mapping[str, Any], folder: Path) -> list[tuple[str, ...]]:
    """The keys of all V and U, each a path of names that ends in ``vu`` or ``stacks``, a name, and 0 or 1."""
    path = folder / ORBAX_METADATA
    tree = content["tree_metadata"]
    check_limit("tensors", len(tree), f"The checkpoint has {len(tree)} arrays", where=str(path), error=ComponentsError)
    found = []
    for entry in tree.values():
        parts = entry.get("key_metadata") if isinstance(entry, dict) else None
        if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("key"), str) for p in parts):
            raise ComponentsError(f"{_DAMAGED}: an array has no key.", where=str(path), hint=_AGAIN)
        names = tuple(part["key"] for part in parts)
        if (
            len(names) >= 4
            and names[-4:-2] in (("components", "vu"), ("components", "stacks"))
            and names[-1] in _FACTORS
        ):
            found.append(names)
    if not found:
        raise ComponentsError(
            "The checkpoint of JAX holds no V and U: it has neither components.vu nor components.stacks.",
            where=str(path),
            hint="Give a run of SPD's JAX code, or export it to torch there: export/model_{step}.safetensors.",
        )
    return found


def _tensorstore() -> ModuleType:
    try:
        return importlib.import_module("tensorstore")
    except ImportError as error:
        raise RuntimeMissingError(
            "The run was saved by JAX, and reading it takes the package tensorstore.",
            where=sys.prefix,
            hint="Run `pip install 'spdexport[jax]'`, or export the run to torch with SPD's code.",
        ) from error


def _read(
    store: ModuleType, folder: Path, names: tuple[str, ...], driver: str, uses_ocdbt: bool, most: int
) -> torch.Tensor:
    """One array, float32 or what it was saved as.

    Raises:
        Exception: tensorstore raises whatever it trips over.
    """
    name = ".".join(names)
    place: dict[str, Any] = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{folder.resolve()}/"},
        "path": f"{name}/",
    }
    if not uses_ocdbt:
        if re.search(r"[/\\\0]", name) or name.startswith("."):
            raise ValueError(f"the array {name!r} is in no folder of its own")
        place = {"driver": "file", "path": f"{folder.resolve() / name}/"}
    opened = store.open({"driver": driver, "kvstore": place}, read=True, open=True).result()
    dtype = str(opened.dtype.name)
    if dtype not in _DTYPES:
        raise ValueError(f"it is of {dtype}, not of a float type")
    size = math.prod(opened.shape) * opened.dtype.numpy_dtype.itemsize
    if size > most:
        raise ValueError(f"it says that it unpacks to {size} bytes, and the limit is {most}")
    return to_torch(np.array(opened.read().result()))


def _unstacked(
    group: str, parts: Mapping[str, torch.Tensor], config: RunConfig, folder: Path
) -> dict[str, dict[str, torch.Tensor]]:
    """The V and U of each layer of a stack.

    Raises:
        ComponentsError: The configuration does not tell which layers these are.
    """
    where = f"{folder}, components.stacks.{group}"
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in parts.items())
    if any(tensor.ndim != 3 for tensor in parts.values()) or len({t.shape[0] for t in parts.values()}) != 1:
        reason = "of blocks, as experts have them" if any(t.ndim == 4 for t in parts.values()) else "that do not fit"
        raise ComponentsError(
            f"The stack {group} has V and U {reason} ({shapes}), and which weight they are of is not told.",
            where=where,
            hint="Export the run to torch with SPD's code, or write <layer>.V and <layer>.U to a file.",
        )
    number = next(iter(parts.values())).shape[0]
    layers = _layers_of(group, number, config)
    if layers is None:
        raise ComponentsError(
            f"The stack {group} has V and U of {number} layers ({shapes}), and nothing tells which they are: "
            f"{config.told} has no list with their names.",
            where=where,
            hint="Put launch_config.yaml into the run's folder with decomposition_targets that name every layer, or "
            "export the run to torch with SPD's code.",
        )
    return {layer: {f: tensor[slot] for f, tensor in parts.items()} for slot, layer in enumerate(layers)}


def _layers_of(group: str, number: int, config: RunConfig) -> Sequence[str] | None:
    """The layers of a stack, in ascending order of the numbers in their names, as SPD stacks them; None: not told."""
    named = [
        str(entry.get(key))
        for listed in ("decomposition_targets", "module_info", "sites")
        for entry in config.list(listed)
        if isinstance(entry, Mapping)
        for key in ("module_pattern", "module_path", "name")
        if key in entry
    ]
    plain = dict.fromkeys(name for name in named if not re.search(r"[*?\[]", name))
    found = [name for name in plain if name == group or name.endswith(f".{group}")]
    if len(found) == number and len(plain) == len(dict.fromkeys(named)):
        return sorted(found, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    # A group of one site, in runs without a family of layers, has the site's own name.
    return [group] if number == 1 and not named else None

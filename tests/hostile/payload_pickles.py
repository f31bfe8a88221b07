"""Pickles that would run code, wherever a pickle can be: by themselves, in arrays, checkpoints and programs."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from payload import Evaluated, Hostile, Make, Payload

Change = Callable[[dict[str, bytes]], None]
"""Changes the members of an archive, by their names without the folder around them."""


def saved(value: object, *, legacy: bool = False) -> bytes:
    """Return what torch.save writes of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def members_of(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return the folder that an archive has around its members, with its slash, and the members."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = "" if "serialized_exported_program.json" in names else names[0].partition("/")[0] + "/"
        return root, {name.removeprefix(root): archive.read(name) for name in names}


def rewritten(source: str, target: str, change: Change) -> Make:
    """Return what writes an archive anew with other members."""

    def make(folder: Path) -> None:
        root, members = members_of(folder / source)
        change(members)
        with zipfile.ZipFile(folder / target, "w") as archive:
            for name, content in members.items():
                archive.writestr(root + name, content)

    return make


def _bytes(name: str, content: Callable[[], bytes]) -> Make:
    return lambda folder: (folder / name).write_bytes(content()) and None


def _member(name: str, content: bytes) -> Change:
    return lambda members: members.__setitem__(name, content)


def _pickled_tensor(kind: str) -> Change:
    """Say of the first weight or constant of a program that it is pickled."""

    def change(members: dict[str, bytes]) -> None:
        name = f"data/{kind}/model_{kind}_config.json"
        config = json.loads(members[name])
        payload = next(iter(config["config"].values()), None)
        if payload is None:
            payload = config["config"]["extra"] = {"path_name": "extra"}
        payload["use_pickle"] = True
        members[name] = json.dumps(config).encode()
        members[f"data/{kind}/{payload['path_name']}"] = saved(Payload())

    return change


def _objects() -> np.ndarray[Any, Any]:
    array = np.empty(2, dtype=object)
    array[:] = [Payload(), Evaluated()]
    return array


def _npz(*, stored: bool) -> Make:
    return lambda folder: (np.savez if stored else np.savez_compressed)(
        folder / "hostile.npz", x=_objects(), conv=_objects(), fc=np.ones(5, np.float32)
    )


def _checkpoint(folder: Path) -> None:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    (folder / "run" / "model_200.pth").write_bytes(saved({**state, "more": Payload()}))


def _state(*, legacy: bool) -> Make:
    def make(folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True)
        (folder / "hostile.pt").write_bytes(saved({**state, "more": Payload()}, legacy=legacy))

    return make


def _data_folder(folder: Path) -> None:
    np.savez(folder / "data" / "c.npz", x=_objects())


def _stacked(folder: Path) -> None:
    """Two pickles, one behind the other: the first is data."""
    (folder / "hostile.pt").write_bytes(saved({"a": torch.ones(1)}, legacy=True) + pickle.dumps(Payload(), protocol=2))


ALONE = tuple(
    # Protocol 0 is a text, as a list of names may be any.
    Hostile(
        name=f"pickle, protocol {protocol}", file="hostile.pt", make=_bytes("hostile.pt", content), refused=protocol > 0
    )
    for protocol, content in (
        (0, lambda: pickle.dumps(Payload(), protocol=0)),
        (2, lambda: pickle.dumps(Payload(), protocol=2)),
        (4, lambda: pickle.dumps(Evaluated(), protocol=4)),
        (5, lambda: pickle.dumps({"x": Payload()}, protocol=5)),
    )
)
PICKLES = (
    *ALONE,
    Hostile(name="pickled module", file="hostile.pt", make=_bytes("hostile.pt", lambda: saved(torch.nn.Linear(2, 2)))),
    Hostile(name="pickle in torch.save", file="hostile.pt", make=_bytes("hostile.pt", lambda: saved(Payload()))),
    Hostile(name="pickle in a state dict", file="hostile.pt", make=_state(legacy=False)),
    Hostile(name="pickle in a legacy state dict", file="hostile.pt", make=_state(legacy=True)),
    Hostile(name="pickle behind a legacy file", file="hostile.pt", make=_stacked, refused=False),
    Hostile(name="pickle in a checkpoint of a run", file="run", make=_checkpoint),
    Hostile(
        name="array of objects", file="hostile.npy",
        make=lambda folder: np.save(folder / "hostile.npy", _objects(), allow_pickle=True),
    ),
    Hostile(name="arrays of objects, stored", file="hostile.npz", make=_npz(stored=True)),
    Hostile(name="arrays of objects, deflated", file="hostile.npz", make=_npz(stored=False)),
    Hostile(name="array of objects in a folder of data", file="data", make=_data_folder),
)  # fmt: skip
"""Pickles by themselves, in torch.save files, and in arrays."""

_CHANGES: dict[str, Change] = {
    "sample inputs": _member("data/sample_inputs/model.pt", saved(((Payload(),), {}))),
    "legacy sample inputs": _member("data/sample_inputs/model.pt", saved(((Payload(),), {}), legacy=True)),
    "a weight": _pickled_tensor("weights"),
    "a constant": _pickled_tensor("constants"),
    "legacy weights": _member("data/weights/model.pt", saved({"a": Payload()})),
    "an opaque object": _member("data/constants/opaque_obj_0", pickle.dumps(Payload())),
    "a custom object": _member("data/constants/custom_obj_0", saved(Payload())),
    "another member": _member("extra/note", pickle.dumps(Payload())),
    "compiled code": _member("data/aotinductor/model/model.so", b"\x7fELF" + bytes(60)),
}
_OLDER = ("serialized_state_dict.pt", "serialized_constants.pt", "serialized_example_inputs.pt")

PROGRAMS = (
    *(
        Hostile(name=f".pt2, pickle in {name}", file="hostile.pt2", make=rewritten("m.pt2", "hostile.pt2", change))
        for name, change in _CHANGES.items()
    ),
    *(
        Hostile(
            name=f".pt2 of the older layout, pickle in {name}",
            file="hostile.pt2",
            make=rewritten("older.pt2", "hostile.pt2", _member(name, saved({"a": Payload()}))),
        )
        for name in _OLDER
    ),
)
"""Pickles in programs."""

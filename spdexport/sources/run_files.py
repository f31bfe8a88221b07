"""What the files of an SPD run directory are called. Nothing heavy is imported: names are looked at before the work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CHECKPOINT = re.compile(r"model_(?P<step>\d+)\.(?:pth|safetensors)")
"""The name of a checkpoint, with the step it was saved at."""

CONFIGS = ("final_config.yaml", "run_config.yaml", "launch_config.yaml")
"""What the run's configuration may be called, beside its checkpoints or one folder above."""

EXPORT = "export"
"""The folder of a run that what was exported to torch is in."""

ORBAX = "ckpts"
"""The folder of a run that JAX wrote its checkpoints to: one folder for each step."""

ORBAX_ITEMS = ("decomposition", "default")
"""The folders of such a checkpoint that V and U may be in: their own one, or that of the whole training state."""

ORBAX_METADATA = "_METADATA"
"""The file of such a folder that tells what it holds."""


def is_run_file(name: str) -> bool:
    """Tell whether a file of that name in a run directory is read."""
    return name in CONFIGS or CHECKPOINT.fullmatch(name) is not None


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the last step in a run directory, or in its folder of exports; None for none.

    Steps are compared by number: as text, model_900 would come after model_4000.
    """
    for place in (folder, folder / EXPORT):
        if not place.is_dir():
            continue
        steps = {int(m["step"]): file for file in sorted(place.iterdir()) if (m := CHECKPOINT.fullmatch(file.name))}
        if steps:
            return steps[max(steps)]
    return None


def last_orbax(folder: Path) -> Path | None:
    """Return the folder with the V and U of the last step that JAX saved in a run directory; None for none.

    The run directory, its folder of checkpoints, the folder of one step, or that of V and U itself may be given.
    """
    if (folder / ORBAX_METADATA).is_file():
        return folder
    for item in ORBAX_ITEMS:
        if (folder / item / ORBAX_METADATA).is_file():
            return folder / item
    for place in (folder / ORBAX, folder):
        if place.is_dir():
            steps = {int(file.name): file for file in place.iterdir() if file.name.isdecimal() and len(file.name) < 19}
            for step in sorted(steps, reverse=True):
                for item in ORBAX_ITEMS:
                    if (steps[step] / item / ORBAX_METADATA).is_file():
                        return steps[step] / item
    return None


def config_folders(place: Path) -> tuple[Path, ...]:
    """Return the folders in which a run's configuration is looked for, given the one that its checkpoint is in."""
    folders = [place]
    if place.name == EXPORT:
        folders.append(place.parent)
    if place.name in ORBAX_ITEMS:
        folders += [place.parent, *(place.parents[1:3] if place.parents[1].name == ORBAX else ())]
    return tuple(folders)

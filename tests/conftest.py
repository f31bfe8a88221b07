"""Makes the small networks of ``networks.py`` importable from every test folder, and tests the same in every place."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import onnxscript._framework_apis.torch_2_5
import pytest
from hypothesis import settings

# Workers share the cores: threads of each for every core wait for one another. Programs that tests start inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent))

# Where the tests themselves run in GitHub Actions, the command line would talk to its runner.
for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(name, None)

# How long an example takes says nothing about what it shows, and machines are shared.
settings.register_profile("spdexport", deadline=None)
settings.load_profile("spdexport")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``long`` all but some tests, evenly spread, of each parametrization that is ``sampled``."""
    groups: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        marker = item.get_closest_marker("sampled")
        if marker is not None:
            groups.setdefault((item.nodeid.partition("[")[0], *marker.args), []).append(item)
    for (_, most), group in groups.items():
        kept = {round(number * (len(group) - 1) / max(most - 1, 1)) for number in range(most)}
        for number, item in enumerate(group):
            if number not in kept:
                item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session", autouse=True)
def _exporters_functions_are_parsed_once():
    """Keep torch's exporter from parsing its 500 functions at every export, which took half of the time of a small one.

    The functions are constants of onnxscript, and the exporter copies what it changes.
    """
    apis = onnxscript._framework_apis.torch_2_5
    with pytest.MonkeyPatch.context() as patch:
        kept = functools.cache(apis.get_torchlib_ops)
        for name, module in list(sys.modules.items()):  # those of newer versions take it from the oldest's
            if name.startswith("onnxscript._framework_apis.torch_"):
                patch.setattr(module, "get_torchlib_ops", kept)
        yield

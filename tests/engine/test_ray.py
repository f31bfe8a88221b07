"""Work on Ray: two workers of this machine give the numbers of one process, whatever becomes of a worker."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from cli_command import EXAMPLE, FACTORY, RUN, subprocess_of
from cli_command import spdexport as command
from safetensors.numpy import load_file

import spdexport
from spdexport.errors import ExampleInputError, SourceError, UsageError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'spdexport[ray]'")
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'spdexport[ray]'")

NETS = Path(__file__).parents[1] / "compression" / "compressible_nets.py"
ROUNDING = 1e-12
"""What sums of float64 may differ by, relative to the greatest, in another order."""


@pytest.fixture(scope="module", autouse=True)
def workers():
    """A cluster of two workers, which the tests of this file share."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The digits run with run-time masks, as ``m.onnx``, and 64 images as ``x.npz``."""
    folder = tmp_path_factory.mktemp("ray")
    spdexport.convert(
        RUN, folder / "m.onnx", factory=FACTORY, input_shape="2x1x16x16", runtime_masks=["all"], delta="drop",
        verify=False,
    )  # fmt: skip
    golden = load_file(EXAMPLE.parents[1] / "tests/data/spd_digits_golden.safetensors")
    noise = np.random.default_rng(0).normal(0, 0.1, (64, 1, 16, 16)).astype(np.float32)
    np.savez(folder / "x.npz", x=np.tile(golden["input"], (4, 1, 1, 1)) + noise)
    return folder


@pytest.fixture(scope="module")
def ablations(folder):
    """Those of a layer, in this process."""
    return spdexport.ablate(folder / "m.onnx", data=folder / "x.npz", layers=["fc2"], rows=8)


def numbers(found):
    parts = ("change", "relative", "largest", "top_changed", "kl")
    return np.array([[getattr(one.effect, part) for part in parts] for one in found.found])


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * max(np.abs(expected).max(), 1))


def pids():
    """The workers that Ray has here for this process."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            names[int(entry.name)] = (entry / "cmdline").read_bytes()
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue

    def is_ours(pid):
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return {pid for pid, name in names.items() if name.startswith(b"ray::MapWorker") and is_ours(pid)}


def test_masks_are_those_of_one_process(folder, tmp_path):
    arguments = ("masks", RUN, "--factory", FACTORY, "--data", folder / "x.npz", "--batch", 8)
    for engine in ("local", "ray"):
        done = command(*arguments, "-o", tmp_path / f"{engine}.safetensors", "--engine", engine)
        assert done.exit_code == 0, done.output
        assert "on 64 samples" in " ".join(done.stdout.split())
    for suffix in ("", ".importances"):
        own, found = (load_file(tmp_path / f"{engine}{suffix}.safetensors") for engine in ("local", "ray"))
        assert own.keys() == found.keys()
        for name, expected in own.items():
            same(found[name], expected)


def test_ablations_are_those_of_one_process(folder, ablations):
    found = spdexport.ablate(folder / "m.onnx", data=folder / "x.npz", layers=["fc2"], rows=8, engine="ray")
    assert (found.samples, found.notes) == (64, ablations.notes)
    same(numbers(found), numbers(ablations))


def test_a_worker_that_is_killed_is_replaced(folder, ablations):
    killed, seen = [], set()

    def kill_one(told):
        seen.update(pids())
        if not killed and getattr(told, "done", 0):
            killed.append(min(pids()))
            os.kill(killed[0], signal.SIGKILL)

    found = spdexport.ablate(
        folder / "m.onnx", inputs=folder / "x.npz", layers=["fc2"], rows=4, engine="ray", progress=kill_one
    )
    assert killed
    assert len(seen) > 2, "no worker came in the place of the one that was killed"
    assert found.samples == 64
    same(numbers(found), numbers(ablations))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What compresses a convolutional net on some engine: to half of its MACs, if nothing else is asked."""
    folder = tmp_path_factory.mktemp("compressed")
    random = np.random.default_rng(0)
    np.savez(folder / "d.npz", x=random.normal(size=(400, 2, 12, 12)).astype(np.float32))

    def compress(engine, **options):
        options = {"macs": 0.5, "verify": False, "cache": folder / engine, **options}
        return spdexport.compress(
            None, folder / f"{engine}.onnx", factory=f"{NETS}:Full", data=folder / "d.npz", engine=engine, **options
        )

    return compress


@pytest.fixture(scope="module")
def compressed(run, tmp_path_factory):
    """The net compressed in this process and on Ray, and the folder in which each keeps its work."""
    kept = tmp_path_factory.mktemp("kept")
    return kept, *(run(engine, cache=kept / engine) for engine in ("local", "ray"))


def test_a_compressed_network_is_that_of_one_process(compressed):
    _, local, other = compressed
    (expected,), (found,) = local.search.points, other.search.points
    same([found.cost, found.macs, found.size], [expected.cost, expected.macs, expected.size])
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)  # answers are float32
    assert [(x.name, x.form, x.ranks) for x in other.search.layers] == [
        (x.name, x.form, x.ranks) for x in local.search.layers
    ]
    assert other.search.test.samples == local.search.test.samples
    assert other.search.test.interval.estimate == pytest.approx(local.search.test.interval.estimate, rel=1e-5)


def test_work_that_is_kept_is_the_same_for_all_engines(run, compressed):
    folder, _, _ = compressed
    (kept,), (other,) = ((folder / engine).iterdir() for engine in ("local", "ray"))
    assert kept.name == other.name
    names = sorted(file.name for file in kept.iterdir())
    assert names == sorted(file.name for file in other.iterdir())
    for name in (name for name in names if name.startswith("layer-")):
        with np.load(kept / name) as own, np.load(other / name) as its:
            assert set(own) == set(its)
            for key in own:
                same(its[key], own[key])
    told = []
    again = run("local", cache=folder / "ray", progress=told.append)
    assert again.search.points == run("ray", cache=folder / "ray").search.points
    assert not any(": 0 of" in str(one) and str(one).startswith("trial") for one in told), "a choice was fitted again"


METRIC = """
import os
from pathlib import Path
import numpy as np

MARK = Path({mark!r})

def always(answers, labels):
    os.kill(os.getpid(), 9)

def once(answers, labels):
    try:
        MARK.touch(exist_ok=False)
    except FileExistsError:
        return answers.max(axis=1)
    os.kill(os.getpid(), 9)

def wrong(answers, labels):
    raise ValueError("no such measure")
"""


@pytest.fixture
def metric(tmp_path):
    (tmp_path / "metric.py").write_text(METRIC.format(mark=str(tmp_path / "mark")))
    return tmp_path / "metric.py"


def test_a_measure_that_ends_its_process_once_is_survived(run, metric):
    found = run("ray", metric=f"{metric}:once", max_metric_drop=1000.0, macs=None, layers=["pair"])
    assert found.search.chosen is not None
    assert (metric.parent / "mark").exists()


def test_a_measure_that_always_does_is_told(run, metric):
    with pytest.raises(UsageError, match="Workers of Ray were lost again and again") as error:
        run("ray", metric=f"{metric}:always", max_metric_drop=1000.0, macs=None, layers=["pair"])
    assert error.value.where == "--engine ray"


def test_an_error_in_a_worker_is_the_one_of_this_process(run, metric):
    found = []
    for engine in ("local", "ray"):
        with pytest.raises(SourceError) as error:
            run(engine, metric=f"{metric}:wrong", max_metric_drop=1000.0, macs=None, layers=["pair"])
        found.append(str(error.value))
    assert found[0] == found[1]
    assert "no such measure" in found[0]


def test_data_that_cannot_be_used_are_told_as_ever(folder, tmp_path):
    with np.load(folder / "x.npz") as archive:
        x = archive["x"]
    x[50] = np.nan
    np.savez(tmp_path / "nan.npz", x=x)
    with pytest.raises(ExampleInputError, match="The data hold NaN or infinity"):
        spdexport.derive_masks(RUN, data=tmp_path / "nan.npz", factory=FACTORY, batch=16, engine="ray")


@pytest.mark.slow
def test_the_command_begins_a_cluster_of_its_own_and_ends_it(folder, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess_of(
        "ablate", folder / "m.onnx", "--data", folder / "x.npz", "--layers", "fc2", "--rows", 8, "--engine", "ray",
        "--report", tmp_path / "r.json", env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "r.json").exists()


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told(folder):
    done = subprocess_of(
        "ablate", folder / "m.onnx", "--data", folder / "x.npz", "--engine", "ray",
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "where: RAY_ADDRESS=127.0.0.1:1" in done.stderr
    assert len(done.stderr.splitlines()) == 3

"""Masks from a harvest, from names and from labels: no model runs, and files are untrusted."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from cli_command import spdexport
from safetensors.numpy import load_file

from spdexport import convert, derive_masks
from spdexport.errors import InputError, MaskError, UsageError

DATA = Path(__file__).parents[1] / "data" / "spd_kinds"
RUN = DATA / "vector_mlp"
SIZES = {"blocks.0": 9, "blocks.1": 10, "head": 11}

# The tables as SPD's code makes them: of today, and before it wrote firing densities.
NEWER = """CREATE TABLE components (component_key TEXT PRIMARY KEY, layer TEXT NOT NULL, component_idx INTEGER NOT NULL,
 firing_density REAL NOT NULL, n_activation_examples INTEGER NOT NULL DEFAULT 0, mean_activations TEXT NOT NULL)"""
OLDER = """CREATE TABLE components (component_key TEXT PRIMARY KEY, layer TEXT NOT NULL, component_idx INTEGER NOT NULL,
 mean_ci REAL NOT NULL)"""


def database(path, *statements):
    connection = sqlite3.connect(path)
    for statement, *rows in statements:
        if rows:
            connection.executemany(statement, rows[0])
        else:
            connection.execute(statement)
    connection.commit()
    connection.close()
    return path


def newer(path, values):
    rows = [
        (f"{layer}:{i}", layer, i, density, json.dumps({"causal_importance": mean, "component_activation": 7.0}))
        for (layer, i), (density, mean) in values.items()
    ]
    columns = "component_key, layer, component_idx, firing_density, mean_activations"
    insert = f"INSERT INTO components ({columns}) VALUES (?, ?, ?, ?, ?)"
    return database(path, (NEWER,), (insert, rows))


@pytest.fixture
def harvest(tmp_path):
    """Densities and means of two layers; component 8 of blocks.0 is not there, as those that never fired are not."""
    values = {("blocks.0", i): (i / 10, i / 1000) for i in range(8)} | {("head", i): (0.0, 0.5) for i in range(11)}
    return newer(tmp_path / "harvest.db", values)


def test_a_harvest_by_how_often_components_fired(harvest, tmp_path):
    before = harvest.read_bytes()
    found = derive_masks(RUN, tmp_path / "m.safetensors", harvest=harvest)
    assert {layer.name: layer.mask.tolist() for layer in found.layers} == {
        "blocks.0": [0, 1, 1, 1, 1, 1, 1, 1, 0], "head": [0] * 11,
    }  # fmt: skip
    assert found.notes == ("left whole, for the file says nothing of them: blocks-1",)
    assert set(load_file(tmp_path / "m.safetensors")) == {"blocks.0", "head"}
    beside = load_file(tmp_path / "m.importances.safetensors")
    assert set(beside) == {f"{layer}/{what}" for layer in ("blocks.0", "head") for what in ("mean", "frequency")}
    np.testing.assert_allclose(beside["blocks.0/frequency"][:8], np.arange(8) / 10, atol=1e-7)
    assert harvest.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "harvest.db", "m.safetensors", "m.importances.safetensors",
    }  # fmt: skip


def test_a_harvest_by_the_mean_and_the_greatest(harvest):
    by_mean = derive_masks(RUN, harvest=harvest, by="mean", threshold=0.0045)
    assert by_mean.layers[0].mask.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0]
    few = derive_masks(RUN, harvest=harvest, by="mean", top=2)
    assert few.layers[0].mask.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 0]
    often = derive_masks(RUN, harvest=harvest, min_frequency=0.6, by="frequency")
    assert often.layers[0].live == 2


def test_an_older_harvest(tmp_path):
    rows = [(f"head:{i}", "head", i, i / 100) for i in range(11)]
    path = database(tmp_path / "h.db", (OLDER,), ("INSERT INTO components VALUES (?,?,?,?)", rows))
    found = derive_masks(RUN, harvest=path, threshold=0.05)
    assert found.layers[0].mask.tolist() == [0] * 6 + [1] * 5
    with pytest.raises(UsageError, match="does not tell the frequency"):
        derive_masks(RUN, harvest=path, by="frequency")
    with pytest.raises(UsageError, match="Nothing tells how great a mean importance has to be"):
        derive_masks(RUN, harvest=path)


NAMES = [
    (["blocks.0:1", "blocks-1:3"], {"blocks.0": [1], "blocks-1": [3]}),
    ({"some": ["head:0", "head:10"], "others": [["head:2"]]}, {"head": [0, 2, 10]}),
    ({"head": [0, 4], "blocks-0": [8]}, {"head": [0, 4], "blocks-0": [8]}),
]


@pytest.mark.parametrize(("content", "kept"), NAMES, ids=["list", "sets", "numbers"])
def test_names(content, kept, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps(content))
    found = derive_masks(RUN, names=tmp_path / "names.json")
    assert {layer.name: layer.mask.nonzero()[0].tolist() for layer in found.layers} == kept
    removed = derive_masks(RUN, names=tmp_path / "names.json", remove=True)
    for one, other in zip(found.layers, removed.layers, strict=True):
        np.testing.assert_array_equal(one.mask + other.mask, np.ones(one.components))


LABELS = {
    "a.csv": "component_key,label\nhead:0,Plural nouns\nhead:1,commas\nblocks.0:2,other\n",
    "a.tsv": "layer\tcomponent_idx\tinterpretation\nhead\t0\tplural verbs\nhead\t1\tcommas\nblocks.0\t2\tother\n",
    "a.json": json.dumps({"head:0": "plural nouns", "head:1": "commas", "blocks.0:2": "other"}),
    "b.json": json.dumps([{"component": "head:0", "label": "plural"}, {"component": "blocks.0:2", "label": "x"}]),
}


@pytest.mark.parametrize("name", [*LABELS, "interp.db"])
def test_labels(name, tmp_path):
    path = tmp_path / name
    if name in LABELS:
        path.write_text(LABELS[name])
    else:
        rows = [("head:0", "plural nouns"), ("head:1", "commas"), ("blocks.0:2", "other")]
        table = "CREATE TABLE interpretations (component_key TEXT, label TEXT)"
        database(path, (table,), ("INSERT INTO interpretations VALUES (?, ?)", rows))
    found = derive_masks(RUN, labels=path, label=["*plural*"])
    assert {x.name: x.mask.nonzero()[0].tolist() for x in found.layers} == {"head": [0], "blocks.0": []}
    removed = derive_masks(RUN, labels=path, label="*plural*", remove=True)
    assert {x.name: x.live for x in removed.layers} == {"head": 10, "blocks.0": 9}


def test_the_command_and_a_file_that_convert_takes(harvest, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps(["blocks-0:1", "head:3"]))
    done = spdexport(
        "masks", RUN, "--names", tmp_path / "names.json", "-o", tmp_path / "m.safetensors", "--report",
        tmp_path / "r.json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "2 of 20 components kept: those named in names.json" in " ".join(done.stdout.split())
    assert json.loads((tmp_path / "r.json").read_text())["rule"] is None
    assert not (tmp_path / "m.importances.safetensors").exists()
    given = {"factory": f"{DATA / 'targets.py'}:MLP", "inputs": DATA / "vector_mlp.x.npz", "verify": False}
    made = convert(RUN, tmp_path / "m.onnx", **given, masks=tmp_path / "m.safetensors")
    assert [layer.live for layer in made.plan.layers] == [1, 10, 1]
    done = spdexport("masks", RUN, "--harvest", harvest, "-o", tmp_path / "h.safetensors")
    assert "7 of 20 components kept: firing density above 0, of harvest.db" in " ".join(done.stdout.split())
    over = spdexport("masks", RUN, "--harvest", tmp_path / "x.safetensors", "-o", tmp_path / "x.safetensors")
    assert over.exit_code == 2


USAGE = [
    ({}, "There are no data, and no file"),
    ({"harvest": "h.db", "names": "n.json"}, "Masks come from one thing"),
    ({"labels": "l.csv"}, "Nothing tells which labels are meant"),
    ({"names": "n.json", "label": ["x"]}, "There are no labels to look at"),
    ({"harvest": "h.db", "remove": True}, "A harvest names no components to remove"),
    ({"names": "n.json", "factory": "m.py:f"}, "No model runs where a file tells"),
    ({"data": DATA / "vector_mlp.x.npz", "label": ["x"]}, "There are no labels to look at"),
]


@pytest.mark.parametrize(("given", "what"), USAGE, ids=[what for _, what in USAGE])
def test_what_does_not_go_together(given, what):
    with pytest.raises(UsageError, match=what):
        derive_masks(RUN, **given)


def write_text(text):
    return lambda path: path.write_text(text)


def one(key, density, means):
    def write(path):
        insert = "INSERT INTO components VALUES (?, '', 0, ?, 0, ?)"
        database(path, (NEWER,), (insert, [(key, density, means)]))

    return write


def endless(path):
    """A view in the place of the table, which never ends."""
    query = (
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT i AS component_key, i AS mean_ci FROM n"
    )
    database(path, (f"CREATE VIEW components AS {query}",))


def computed(path):
    """A column that is computed, with a text of a gigabyte."""
    database(
        path,
        ("CREATE TABLE components (component_key TEXT, mean_ci AS (zeroblob(1000000000)), firing_density REAL)",),
        ("INSERT INTO components (component_key, firing_density) VALUES (?, ?)", [("head:0", 1.0)]),
    )


def truncated(path):
    newer(path, {("head", i): (0.1, 0.1) for i in range(11)})
    path.write_bytes(path.read_bytes()[:5000])


def unfinished(path):
    newer(path, {("head", 0): (0.1, 0.1)})
    path.with_name(f"{path.name}-wal").write_bytes(b"x")


BAD = [
    ("harvest", write_text("SQLite"), "is no SQLite database"),
    ("harvest", write_text("SQLite format 3\0" + "x" * 4000), "cannot be read|is damaged"),
    ("harvest", truncated, "is damaged|cannot be read"),
    ("harvest", unfinished, "The database was not closed"),
    ("harvest", endless, "no table of components with their importance"),
    ("harvest", one("tail:0", 0.1, "{}"), "has components of tail, and the run has none"),
    ("harvest", one("head:11", 0.1, '{"causal_importance": 1}'), "has the component head:11, and head has 0 to 10"),
    ("harvest", one("head", 0.1, "{}"), "names no component"),
    ("harvest", one("head:0", 0.1, "{"), "mean_activations are no JSON"),
    ("harvest", one("head:0", 0.1, "{}"), "mean_activations of head:0 is no finite number"),
    ("harvest", one("head:0", float("inf"), '{"causal_importance": 1}'), "firing_density of head:0 is no finite"),
    ("names", write_text("{"), "The file cannot be read"),
    ("names", write_text("[]"), "names no components"),
    ("names", write_text("[1]"), "names what is no component"),
    ("names", write_text('{"a": {"b": 1}}'), "holds no lists of components"),
    ("names", write_text('["head:99"]'), "has the component head:99"),
    ("names", write_text('{"tail": [0]}'), "has components of tail"),
    ("labels", write_text("a,b\n1,2\n"), "no table of components with their labels"),
    ("labels", write_text("component_key,label\nhead:0,commas\n"), "No label matches 'plural'"),
    ("labels", write_text("component_key,label\nhead:0," + "x" * 200_000), "The labels cannot be read"),
]


@pytest.mark.parametrize(("option", "make", "what"), BAD, ids=[f"{o}: {w[:30]}" for o, _, w in BAD])
def test_files_that_cannot_be_used(option, make, what, tmp_path):
    make(tmp_path / "file")
    with pytest.raises((MaskError, InputError), match=what) as caught:
        derive_masks(RUN, **{option: tmp_path / "file"}, **({"label": "plural"} if option == "labels" else {}))
    assert caught.value.exit_status == 4
    with pytest.raises(InputError, match="no such file"):
        derive_masks(RUN, **{option: tmp_path / "none"}, **({"label": "plural"} if option == "labels" else {}))


def test_columns_that_are_computed_are_none(tmp_path):
    computed(tmp_path / "h.db")
    found = derive_masks(RUN, harvest=tmp_path / "h.db")
    assert found.layers[0].importances.mean is None
    assert found.layers[0].live == 1


def test_more_rows_than_components(tmp_path):
    """The run tells how many there can be: a table of a billion is not read."""
    rows = [("head:0", "head", i, 0.5) for i in range(40)]
    table = OLDER.replace(" PRIMARY KEY", "")
    path = database(tmp_path / "h.db", (table,), ("INSERT INTO components VALUES (?,?,?,?)", rows))
    with pytest.raises(MaskError, match="has more than 30 rows"):
        derive_masks(RUN, harvest=path)

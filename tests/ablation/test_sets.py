"""Sets of components: every form that is taken, and what is refused."""

import json

import pytest

from spdexport.ablation.sets import each_of, read_sets
from spdexport.errors import InputError

COMPONENTS = {"net.conv1": 4, "fc": 3}


def read(tmp_path, content):
    path = tmp_path / "sets.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return [(one.name, dict(one.members)) for one in read_sets(path, COMPONENTS)]


def test_every_component():
    assert [one.name for one in each_of(COMPONENTS)] == [
        "net.conv1:0", "net.conv1:1", "net.conv1:2", "net.conv1:3", "fc:0", "fc:1", "fc:2",
    ]  # fmt: skip


LISTS = [["net.conv1:3", "fc:0", "net.conv1:1"], ["fc:2"]]
MEMBERS = [{"net.conv1": (1, 3), "fc": (0,)}, {"fc": (2,)}]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"a": LISTS[0], "b": LISTS[1]}, ["a", "b"]),
        (LISTS, ["0", "1"]),
        ({"clusters": LISTS}, ["0", "1"]),
        ({"sets": {"a": LISTS[0], "b": LISTS[1]}}, ["a", "b"]),
        ([["net-conv1:3", "fc:0", "net-conv1:1"], ["fc:2"]], ["0", "1"]),
    ],
    ids=["by name", "lists", "clusters", "sets", "dashes"],
)
def test_forms(tmp_path, content, names):
    assert read(tmp_path, content) == list(zip(names, MEMBERS, strict=True))


def test_a_set_may_be_called_clusters(tmp_path):
    assert read(tmp_path, {"clusters": ["fc:1"]}) == [("clusters", {"fc": (1,)})]


REFUSED = [
    ("{", "The sets cannot be read"),
    (3, "The file holds no sets by name"),
    ([], "The file holds no sets"),
    ({"a": []}, "The set 'a' is no list of components"),
    ({"a": {"b": 1}}, "The set 'a' is no list of components"),
    ({"a": [1]}, "The set 'a' is no list of components"),
    ({"a": ["conv9:1"]}, "names 'conv9:1', and the file has no run-time mask of that layer"),
    ({"a": ["fc"]}, "names 'fc', and the file has no run-time mask"),
    ({"a": ["fc:3"]}, "names 'fc:3', and fc has the components 0 to 2"),
    ({"a": ["fc:-1"]}, "names 'fc:-1', and fc has the components 0 to 2"),
    ({"a": ["fc:x"]}, "names 'fc:x', and fc has the components 0 to 2"),
]


@pytest.mark.parametrize(("content", "what"), REFUSED, ids=[what for _, what in REFUSED])
def test_refusals(tmp_path, content, what):
    with pytest.raises(InputError, match=what):
        read(tmp_path, content)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="There is no such file"):
        read_sets(tmp_path / "sets.json", COMPONENTS)

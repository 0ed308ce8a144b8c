"""Documents: config trees that know the line of every key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quadriga.data.errors import UserError
from quadriga.launch.config.document import Document, KeyPath, read_yaml

WORDS = st.text("abcdxyz_", min_size=1, max_size=6)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | WORDS.map("word-{}".format),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=20,
)


def paths(tree: Any, path: KeyPath = ()) -> list[KeyPath]:
    """Return the path of every value of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in items for found in [(*path, key), *paths(value, (*path, key))]]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(WORDS, TREES, min_size=1, max_size=5))
def test_values_and_lines(tree: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "tree.yaml"
    file.write_text(yaml.safe_dump(tree, default_flow_style=False))
    document, lines = read_yaml(file), file.read_text().splitlines()
    assert document.tree == tree
    for path in paths(tree):
        name, _, number = document.place(path).rpartition(", line ")
        assert name == str(file)
        if isinstance(path[-1], str):
            assert f"{path[-1]}:" in lines[int(number) - 1]


@settings(max_examples=60)
@given(
    tree=st.dictionaries(WORDS, TREES, max_size=5), path=st.lists(WORDS, min_size=1, max_size=4), value=st.integers()
)
def test_assign_sets_one_value_and_keeps_the_rest(tree: dict[str, Any], path: list[str], value: int) -> None:
    before = {key: repr(item) for key, item in tree.items() if key != path[0]}
    document = Document(tree)
    try:
        document.assign(tuple(path), value, "here")
    except UserError as error:
        assert "cannot be set" in str(error)
    else:
        assert document.get(tuple(path)) == value
        assert document.place(tuple(path)) == "here"
    assert {key: repr(item) for key, item in tree.items() if key != path[0]} == before


def test_defaults_fill_only_unset_keys() -> None:
    document = Document({"a": {"b": {"c": 1}, "l": [1]}}, {("a",): "ours"})
    document.fill(("a",), Document({"b": {"c": 2, "d": 3}, "l": [2, 3], "e": {"f": 4}}, {("e",): "theirs"}))
    assert document.tree == {"a": {"b": {"c": 1, "d": 3}, "l": [1], "e": {"f": 4}}}
    assert (document.place(("a", "e", "f")), document.place(("a", "b", "c"))) == ("theirs", "ours")


@pytest.mark.parametrize("path", [("a", "x"), ("l", 3), ("l", "name"), ("l", 0, "x")])
def test_paths_that_cannot_be_set(path: KeyPath) -> None:
    with pytest.raises(UserError, match="cannot be set"):
        Document({"a": 1, "l": [1, 2]}).assign(path, 0, "here")

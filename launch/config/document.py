"""Document: a config tree that knows the file and line of every key, so that an error can point at it."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from quadriga.data.errors import UserError

Key = str | int
"""Key of a mapping or index into a list."""
KeyPath = tuple[Key, ...]
"""The keys from the root of a tree to a value."""


@dataclass
class Document:
    """A config tree of dicts, lists and scalars, and the place where each of its keys was written.

    places: key path -> text such as `sft.yaml, line 3` or `the command line`.
    """

    tree: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Return where a key was written, or its nearest parent if the key itself was not."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, "")

    def get(self, path: KeyPath) -> Any:
        """Return the value at a path, or None if there is none."""
        value: Any = self.tree
        for key in path:
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list) and isinstance(key, int) and key < len(value):
                value = value[key]
            else:
                return None
        return value

    def assign(self, path: KeyPath, value: Any, place: str) -> None:
        """Set a value and create the mappings on its path. A list index may be one past the end.

        Some sections may be a text, which is short for a mapping with that `path`: assigning to `path` below a text
        replaces the text by a mapping. Raises UserError when a value on the way is neither a mapping nor a list.
        """
        parent: Any = self.tree
        for depth, key in enumerate(path[:-1]):
            value_there = self.get(path[: depth + 1])
            if value_there is None or (isinstance(value_there, str) and path[depth + 1] == "path"):
                _put(parent, key, {}, path[: depth + 1])
            parent = parent[key]
        _put(parent, path[-1], value, path)
        self._forget(path)
        self.places[path] = place

    def graft(self, path: KeyPath, other: "Document") -> None:
        """Replace the value at a path by another document, and keep that document's places."""
        self.assign(path, copy.deepcopy(other.tree), other.place(()))
        for below, place in other.places.items():
            self.places[path + below] = place

    def subtree(self, path: KeyPath) -> "Document":
        """Return a copy of the mapping at a path, with its places."""
        depth = len(path)
        places = {below[depth:]: place for below, place in self.places.items() if below[:depth] == path}
        return Document(copy.deepcopy(self.get(path)), places | {(): self.place(path)})

    def fill(self, path: KeyPath, default: "Document", below: KeyPath = ()) -> None:
        """Copy every key of `default` that is not set at `path`, mapping by mapping.

        below: where in both trees the recursion stands.
        """
        own, inherited = self.get(path + below), default.get(below)
        if own is None:
            self.assign(path + below, copy.deepcopy(inherited), default.place(below))
        elif isinstance(own, dict) and isinstance(inherited, dict):
            for key in inherited:
                self.fill(path, default, (*below, key))

    def _forget(self, path: KeyPath) -> None:
        for below in [below for below in self.places if below[: len(path)] == path]:
            del self.places[below]


def _put(parent: Any, key: Key, value: Any, path: KeyPath) -> None:
    if isinstance(parent, dict):
        parent[key] = value
    elif isinstance(parent, list) and isinstance(key, int) and key <= len(parent):
        parent[key : key + 1] = [value]
    else:
        obstacle = f"a list of {len(parent)} items" if isinstance(parent, list) else f"`{parent}`"
        raise UserError(f"`{dotted(path)}` cannot be set: `{dotted(path[:-1])}` is {obstacle}.")


def dotted(path: Sequence[Key]) -> str:
    """Return a key path as text: `("a", 0, "b")` is `a.0.b`."""
    return ".".join(map(str, path))


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2 scalars (1e-5 is a number; no, on and 1:30 are strings) and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"`{key.value}` is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
        "-+.0123456789",
    ),
}
"""Type of a scalar -> its regular expression, and the characters that it may start with."""

_Loader.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_regex, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^({_regex})$"), list(_first))


def read_yaml(path: Path) -> Document:
    """Read a YAML file that holds one mapping.

    Raises UserError, with file and line, when the file is missing, unreadable, not YAML or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"There is no config file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a config file: {error}.") from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        tree = loader.construct_document(node) if node else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}.") from None
    if node is None or not isinstance(tree, dict):
        raise UserError(
            f"{path} is not a mapping: a config consists of `key: value` lines, the first of them `stage:`."
        )
    places: dict[KeyPath, str] = {(): str(path)}
    _record_places(node, (), str(path), places)
    return Document(tree, places)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader` would read as another type."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def write_yaml(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree to a file from which `read_yaml` reads the same tree."""
    text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def read_value(text: str) -> Any:
    """Parse a YAML value: `1e-5`, `[a, b]`, `true`, `null`, else text. Raises UserError for invalid YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"`{text}` is not a valid YAML value: {getattr(error, 'problem', None) or error}.") from None


def _record_places(node: yaml.Node, path: KeyPath, file: str, places: dict[KeyPath, str]) -> None:
    """Add the file and line of every key below a node to `places`."""
    children: list[tuple[Key, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(index, item, item) for index, item in enumerate(node.value)]
    for key, source, value in children:
        places[(*path, key)] = f"{file}, line {source.start_mark.line + 1}"
        _record_places(value, (*path, key), file, places)

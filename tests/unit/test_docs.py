"""Pages name files, functions and folders that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE_PAGES = [ROOT / "docs/architecture.md", ROOT / "docs/extending.md"]
SPAN = re.compile(r"`([\w./-]+/[\w./-]*)(?:: ([\w.]+))?`")
"""`folder/`, `path/to/file.py` or `path/to/file.py: name`."""


def named_paths(page: Path) -> list[tuple[str, str]]:
    """(path, name in it or "") of every code span of a page that is a path."""
    return SPAN.findall(page.read_text(encoding="utf-8"))


def defined_names(file: Path) -> set[str]:
    """Functions, classes, methods (`Class.method`) and variables at the top of a Python file."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef():
                names.add(node.name)
            case ast.ClassDef():
                names.add(node.name)
                names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
            case ast.Assign():
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name()):
                names.add(node.target.id)
    return names


@pytest.mark.parametrize("page", CODE_PAGES, ids=lambda page: page.stem)
def test_named_paths_exist(page: Path) -> None:
    paths = {path for path, _ in named_paths(page) if path.split("/")[0] in {p.name for p in ROOT.iterdir()}}
    assert len(paths) > 10
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("page", CODE_PAGES, ids=lambda page: page.stem)
def test_named_functions_exist(page: Path) -> None:
    named = [(path, name) for path, name in named_paths(page) if name]
    assert len(named) > 10
    assert [f"{path}: {name}" for path, name in named if name not in defined_names(ROOT / path)] == []


def test_every_package_folder_is_described() -> None:
    """The table of docs/architecture.md has a row for each folder of code."""
    folders = (file.parent.relative_to(ROOT) for file in ROOT.glob("*/*/__init__.py"))
    packages = {str(folder) for folder in folders if folder.parts[0] != "tests"}
    rows = set(re.findall(r"^\| `([\w/]+)/` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE))
    assert sorted(packages - rows) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_test_files_exist(page: Path) -> None:
    known = {file.relative_to(ROOT).as_posix() for file in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`([\w./-]*test_\w+\.py)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not any(file == name or file.endswith(f"/{name}") for file in known)] == []


def test_a_walk_takes_at_most_eight_files() -> None:
    """The walks of docs/architecture.md: a prompt, the weights, and two settings."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    walks = text[text.index("## A prompt, from") :]
    bodies = re.split(r"^## .*$|^`[\w.]+`, eight files:$", walks, flags=re.MULTILINE)
    counts = [len(set(re.findall(r"`([\w./]+\.py)(?:: [\w.]+)?`", body))) for body in bodies if body.strip()]
    assert len(counts) == 4
    assert max(counts) <= 8

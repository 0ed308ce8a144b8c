"""Imports go one way: launch -> orchestrator -> actors -> data, kernels."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def lint(config: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--config", str(config), "--no-cache"]
    return subprocess.run(command, cwd=config.parent, capture_output=True, text=True, timeout=120, check=False)


def test_contracts_hold() -> None:
    done = lint(ROOT / "pyproject.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 kept, 0 broken" in done.stdout


def test_every_package_is_linted() -> None:
    """A package is a folder with an `__init__.py`; only the order of the layers has to be written down."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert set(settings["root_packages"]) == {f"quadriga.{file.parent.name}" for file in ROOT.glob("*/__init__.py")}


def test_an_arrow_that_points_up_is_seen(tmp_path: Path) -> None:
    """The linter really reads our packages: turned around, the layers are broken."""
    text = (ROOT / "pyproject.toml").read_text()
    layers = 'layers = ["quadriga.launch", "quadriga.orchestrator",'
    assert layers in text
    turned = text.replace(layers, 'layers = ["quadriga.orchestrator", "quadriga.launch",')
    config = tmp_path / "pyproject.toml"
    config.write_text(turned)
    assert lint(config).returncode == 1

"""Layers of the packages: imports go from launch to orchestrator to actors to data and kernels."""

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
    """Every top-level folder with an `__init__.py` is a package, and the linter's settings name them all."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert set(settings["root_packages"]) == {f"quadriga.{file.parent.name}" for file in ROOT.glob("*/__init__.py")}


def test_an_upward_import_is_found(tmp_path: Path) -> None:
    """The linter reads the packages: with the layers in the opposite order it reports a violation."""
    text = (ROOT / "pyproject.toml").read_text()
    layers = 'layers = ["quadriga.launch", "quadriga.orchestrator",'
    assert layers in text
    swapped = text.replace(layers, 'layers = ["quadriga.orchestrator", "quadriga.launch",')
    config = tmp_path / "pyproject.toml"
    config.write_text(swapped)
    assert lint(config).returncode == 1

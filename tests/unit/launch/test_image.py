"""The container image: the versions that setup.py pins, on the CUDA of the pinned torch, and only needed files."""

import fnmatch
import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[3]

INSTRUCTIONS = {"FROM", "RUN", "CMD", "LABEL", "EXPOSE", "ENV", "ADD", "COPY", "ENTRYPOINT", "VOLUME", "USER"} | {
    "WORKDIR",
    "ARG",
    "ONBUILD",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "SHELL",
}
CUDA_OF_TORCH = {"2.13.0": "13.0"}
"""Version of cuda-toolkit that torch's wheel on PyPI requires, per version of torch."""


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Return each instruction and the rest of its line, with continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    found = [line.split(maxsplit=1) for line in whole if line.strip()]
    return [(instruction, rest) for instruction, rest in found]


def of_kind(dockerfile: list[tuple[str, str]], kind: str) -> list[str]:
    return [rest for instruction, rest in dockerfile if instruction == kind]


def pin(package: str) -> str:
    """Return the version that setup.py pins."""
    (found,) = re.findall(rf'"{package}(?:\[\w+\])?==([\w.]+)"', (ROOT / "setup.py").read_text())
    return str(found)


def is_sent(path: str) -> bool:
    """Return whether `.dockerignore` lets a file through: the last rule that matches it or a parent folder decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        rule = line.removeprefix("!")
        above = [path] if line.startswith("!") else [path, *map(str, list(PurePosixPath(path).parents)[:-1])]
        # fnmatch's star matches slashes, as `**` does; a rule without a slash is for a name at the root.
        if any(fnmatch.fnmatch(each, rule) and ("**" in rule or "/" not in each) for each in above) or (
            rule.startswith("**/") and any(fnmatch.fnmatch(PurePosixPath(each).name, rule[3:]) for each in above)
        ):
            ignored = not line.startswith("!")
    return not ignored


def test_instructions_are_known(dockerfile: list[tuple[str, str]]) -> None:
    assert {instruction for instruction, _ in dockerfile} <= INSTRUCTIONS
    assert dockerfile[0][0] == "FROM"


def test_versions_are_those_of_setup_py(dockerfile: list[tuple[str, str]]) -> None:
    (base,) = of_kind(dockerfile, "FROM")
    cuda = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\.\d+-devel-ubuntu24\.04", base)
    assert cuda
    assert cuda.group(1) == CUDA_OF_TORCH[pin("torch")]
    commands = " ".join(of_kind(dockerfile, "RUN"))
    pythons = set(re.findall(r"python(3\.\d+)", commands))
    lowest, beyond = re.findall(r'python_requires=">=3\.(\d+),<3\.(\d+)"', (ROOT / "setup.py").read_text())[0]
    assert len(pythons) == 1
    assert int(lowest) <= int(pythons.pop().split(".")[1]) < int(beyond)
    assert "pip install --no-cache-dir '/src[cuda]'" in commands
    assert '"cuda": ["vllm==' in (ROOT / "setup.py").read_text()
    assert not re.findall(r"\w==\d", commands), "only setup.py may pin versions"


def test_the_files_that_setup_py_needs_are_copied(dockerfile: list[tuple[str, str]]) -> None:
    assert of_kind(dockerfile, "COPY") == [". /src"]
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert {"launch", "orchestrator", "actors", "data", "kernels"} <= packages
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    needed = {name for name in tracked if name.split("/")[0] in {*packages, "configs"}}
    needed |= {"setup.py", "pyproject.toml", "README.md", "LICENSE"}
    assert {name for name in tracked if is_sent(name)} == needed


@pytest.mark.parametrize(
    "name",
    [".env", "configs/.env", ".venv/lib/x.py", "runs/demo/config.yaml", "id_rsa", "launch/key.pem", "tests/a.py"],
)
def test_other_files_are_not_sent_to_the_builder(name: str) -> None:
    assert not is_sent(name)


def test_the_dockerfile_holds_no_secret(dockerfile: list[tuple[str, str]]) -> None:
    text = (ROOT / "Dockerfile").read_text().lower()
    assert not [word for word in ("token", "password", "api_key", "secret") if word in text]
    assert not of_kind(dockerfile, "ARG")


def test_the_user_is_not_root(dockerfile: list[tuple[str, str]]) -> None:
    (user,) = of_kind(dockerfile, "USER")
    assert user.split(":")[0].isdigit()
    assert user.split(":")[0] != "0"


def test_nothing_unneeded_is_installed(dockerfile: list[tuple[str, str]]) -> None:
    assert not of_kind(dockerfile, "ADD")
    installs = [rest for rest in of_kind(dockerfile, "RUN") if "apt-get install" in rest]
    assert all("rm -rf /var/lib/apt/lists/*" in rest for rest in installs)
    assert all("--no-install-recommends" in rest for rest in installs)

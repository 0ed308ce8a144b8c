"""The Dockerfile installs what setup.py pins, on the CUDA of the pinned torch, and takes no more along."""

import fnmatch
import re
from pathlib import Path

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
"""From the metadata of torch's wheel on PyPI: it asks for cuda-toolkit of this version."""


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instruction and the rest of its line, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    found = [line.split(maxsplit=1) for line in whole if line.strip()]
    return [(instruction, rest) for instruction, rest in found]


def of_kind(dockerfile: list[tuple[str, str]], kind: str) -> list[str]:
    return [rest for instruction, rest in dockerfile if instruction == kind]


def pin(package: str) -> str:
    """The version that setup.py pins."""
    (found,) = re.findall(rf'"{package}(?:\[\w+\])?==([\w.]+)"', (ROOT / "setup.py").read_text())
    return str(found)


def sources(dockerfile: list[tuple[str, str]]) -> list[str]:
    return [source for rest in of_kind(dockerfile, "COPY") for source in rest.split()[:-1]]


def test_instructions_are_known(dockerfile: list[tuple[str, str]]) -> None:
    assert {instruction for instruction, _ in dockerfile} <= INSTRUCTIONS and dockerfile[0][0] == "FROM"


def test_versions_are_those_of_setup_py(dockerfile: list[tuple[str, str]]) -> None:
    (base,) = of_kind(dockerfile, "FROM")
    cuda = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\.\d+-devel-ubuntu24\.04", base)
    assert cuda and cuda.group(1) == CUDA_OF_TORCH[pin("torch")]
    commands = " ".join(of_kind(dockerfile, "RUN"))
    pythons = set(re.findall(r"python(3\.\d+)", commands))
    lowest, beyond = re.findall(r'python_requires=">=3\.(\d+),<3\.(\d+)"', (ROOT / "setup.py").read_text())[0]
    assert len(pythons) == 1 and int(lowest) <= int(pythons.pop().split(".")[1]) < int(beyond)
    assert (
        "pip install --no-cache-dir '/src[cuda]'" in commands and '"cuda": ["vllm==' in (ROOT / "setup.py").read_text()
    )
    assert not re.findall(r"\w==\d", commands), "versions are pinned in setup.py alone"


def test_what_it_copies_exists_and_is_all_that_setup_py_needs(dockerfile: list[tuple[str, str]]) -> None:
    copied = sources(dockerfile)
    assert all((ROOT / source).exists() for source in copied)
    setup = (ROOT / "setup.py").read_text()
    packages = re.findall(r'"(\w+)"', re.findall(r"^PACKAGES = (.*)$", setup, re.MULTILINE)[0])
    assert {*packages, "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE"} == set(copied)


def test_nothing_else_is_sent_to_the_builder(dockerfile: list[tuple[str, str]]) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*" and {rule[1:] for rule in rules if rule.startswith("!")} == set(sources(dockerfile))
    assert any(fnmatch.fnmatch("configs/.env", rule) for rule in rules[1:] if not rule.startswith("!"))


def test_nothing_secret_and_nobody_privileged(dockerfile: list[tuple[str, str]]) -> None:
    text = (ROOT / "Dockerfile").read_text().lower()
    assert not [word for word in ("token", "password", "api_key", "secret") if word in text]
    (user,) = of_kind(dockerfile, "USER")
    assert user.split(":")[0].isdigit() and user.split(":")[0] != "0"
    assert not of_kind(dockerfile, "ARG") and not of_kind(dockerfile, "ADD")
    installs = [rest for rest in of_kind(dockerfile, "RUN") if "apt-get install" in rest]
    assert all("rm -rf /var/lib/apt/lists/*" in rest and "--no-install-recommends" in rest for rest in installs)

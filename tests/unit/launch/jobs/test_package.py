"""Contents of a job: the config that it runs, the files that the config names, and Quadriga itself."""

import re
import shutil
from collections.abc import Callable
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadriga.data.errors import UserError
from quadriga.launch.config.document import read_yaml, write_yaml
from quadriga.launch.config.load import load_config, resolved
from quadriga.launch.job_main import install_inputs
from quadriga.launch.jobs.package import CONFIG, INPUTS, stage_job, stage_package

Write = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[4]
HOME = "/shared/runs/tune/inputs"


@pytest.fixture
def staged(sft: dict[str, Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Stage the SFT config with changes; return the job's working directory and its config, loaded there."""
    monkeypatch.chdir(tmp_path)

    def stage(changes: dict[str, Any], **options: Any) -> tuple[Path, Any]:
        config = load_config(write(sft | {"run_dir": "/shared/runs/tune"} | changes))
        folder = Path(stage_job(config, tmp_path / "staged", **options).working_dir)
        monkeypatch.chdir(folder)
        return folder, load_config(CONFIG)

    return stage


def sent_file(folder: Path, path: str) -> Path:
    """Return the file or folder in the job's working directory that the run finds at this path of its config."""
    return folder / INPUTS / Path(path).relative_to(HOME)


def test_inputs_are_installed_in_the_run_directory(staged: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    _, config = staged({})  # from here on the working directory is the job's
    install_inputs(str(tmp_path / "run"))
    install_inputs(str(tmp_path / "run"))  # as when a job is submitted again
    own = tmp_path / "run" / "inputs" / Path(config.model.path).relative_to(HOME)
    assert {file.name: file.read_bytes() for file in own.iterdir()} == {f.name: f.read_bytes() for f in model.iterdir()}


def test_a_named_template_is_no_file(staged: Callable[..., Any], sft: dict[str, Any], tmp_path: Path) -> None:
    """A folder of the same name, such as a model's, is not sent."""
    (tmp_path / "qwen3").mkdir()
    (tmp_path / "qwen3" / "model.safetensors").write_text("weights")
    folder, config = staged({"data": sft["data"] | {"chat_template": "qwen3"}})
    assert config.data.chat_template == "qwen3"
    assert not list(folder.rglob("qwen3"))


def test_the_config_of_the_job_has_the_same_settings(
    staged: Callable[..., Any], sft: dict[str, Any], write: Write
) -> None:
    """All settings are equal, except the cluster's address and the model's path."""
    _, config = staged({"cluster": {"device": "cpu", "ssh": {"hosts": ["a"]}}, "optimizer": {"lr": 1e-5}})
    expected = resolved(load_config(write(sft | {"run_dir": "/shared/runs/tune", "optimizer": {"lr": 1e-5}})))
    found = resolved(config)
    assert found["cluster"].pop("address") == "auto"
    assert expected["cluster"].pop("address") is None
    assert re.fullmatch(r"/shared/runs/tune/inputs/\w{8}/model0", found["model"].pop("path"))
    assert expected["model"].pop("path") == sft["model"]["path"]
    assert found == expected


def test_a_model_folder_is_sent(staged: Callable[..., Any], model: Path) -> None:
    folder, config = staged({})
    names = {file.name for file in sent_file(folder, config.model.path).iterdir()}
    assert names == {file.name for file in model.iterdir()}


def test_files_globs_and_lists_are_sent(staged: Callable[..., Any], tmp_path: Path) -> None:
    """Paths may be relative, absolute or globs, alone or in lists; one that is not here is left as it is."""
    for name in ("rows.jsonl", "shards/a/1.jsonl", "shards/b/2.jsonl", "shards/b/2.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    sources = ["rows.jsonl", {"path": f"{tmp_path}/shards/*/*.jsonl"}, "/nowhere/rows.jsonl", {"path": "rows.jsonl"}]
    folder, config = staged({"data": {"train": sources, "heldout": "rows.jsonl"}})
    paths = [source.path for source in config.data.train]
    assert sent_file(folder, paths[0]).read_text() == "rows.jsonl"
    assert sorted(file.read_text() for file in (folder / INPUTS).glob(str(Path(paths[1]).relative_to(HOME)))) == [
        "shards/a/1.jsonl",
        "shards/b/2.jsonl",
    ]
    assert paths[2] == "/nowhere/rows.jsonl"
    assert paths[3] == paths[0] == config.data.heldout[0].path  # sent once
    assert not list(folder.rglob("*.txt"))


def test_an_additional_file_leaves_other_paths_unchanged(
    staged: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a run that is submitted again would seem to have other data."""
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(name)
    _, alone = staged({"data": {"train": "b.jsonl"}})
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "staged")
    _, both = staged({"data": {"train": ["a.jsonl", "b.jsonl"]}})
    assert both.data.train[1].path == alone.data.train[0].path
    assert both.model == alone.model


def test_shared_folders_are_not_sent(staged: Callable[..., Any], model: Path) -> None:
    folder, config = staged({}, shared=[model.parent])
    assert config.model.path == str(model)
    assert [file.name for file in folder.rglob("*") if file.is_file()] == ["config.yaml"]


def test_too_large_files_are_refused_by_name(staged: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "large.jsonl").write_bytes(bytes(3_000_000))
    (tmp_path / "small.jsonl").write_bytes(bytes(1_000_000))
    with pytest.raises(UserError) as caught:
        staged({"data": {"train": ["large.jsonl", "small.jsonl"]}}, limit=3_500_000)
    text = str(caught.value)
    assert f"The largest are {tmp_path}/large.jsonl (3.0 MB), {tmp_path}/small.jsonl (1.0 MB)" in text
    assert "at most 3.5 MB" in text
    assert "--shared" in text


def test_own_modules_are_sent_without_hidden_files(staged: Callable[..., Any], tmp_path: Path) -> None:
    own = tmp_path / "own"
    for name in ("rewards.py", "words/list.txt", ".env", ".git/config", "__pycache__/rewards.pyc"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(name)
    folder, _ = staged({}, working_dir=own)
    assert (folder / "rewards.py").is_file()
    assert (folder / "words/list.txt").is_file()
    assert not [name for name in (".env", ".git", "__pycache__") if (folder / name).exists()]


def test_every_stage_of_a_pipeline_joins_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load_config(ROOT / "configs/assistant/pipeline.yaml", ["run_dir=/shared/runs/assistant"])
    monkeypatch.chdir(stage_job(pipeline, tmp_path).working_dir)
    found = load_config(CONFIG)
    entries = [*found.stages, *found.repeat]
    assert [entry.name for entry in entries] == [entry.name for entry in [*pipeline.stages, *pipeline.repeat]]
    assert {each["cluster"]["address"] for each in [resolved(found), *(entry.config for entry in entries)]} == {"auto"}


def test_the_package_is_complete(tmp_path: Path) -> None:
    stage_package(tmp_path)
    for name in ("launch", "orchestrator", "actors", "data", "kernels", "configs"):
        ours = {file.relative_to(ROOT) for file in (ROOT / name).rglob("*") if file.suffix in (".py", ".sh", ".yaml")}
        assert ours
        assert all((tmp_path / "quadriga" / file).read_bytes() == (ROOT / file).read_bytes() for file in ours)
    assert not list(tmp_path.rglob("__pycache__"))
    assert [each.version for each in distributions(path=[str(tmp_path)])] == [version("quadriga")]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
    st.sampled_from(["1e-5", "no", "on", "1:30", "0x1f", "1_000", "null", "~", ".inf", "true", "", "- a", "a: b"]),
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), min_size=1))
def test_a_written_config_reads_the_same(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    write_yaml(file, tree)
    assert read_yaml(file).tree == tree

"""Names of models: folders, `~`, and names of the Hub that the local cache holds or does not hold."""

from pathlib import Path

import pytest

from quadriga.actors.model.folder import read_config
from quadriga.actors.settings import ModelSettings
from quadriga.data.errors import UserError
from quadriga.data.model_path import local_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that holds `org/tiny`; its snapshot."""
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "llama"}')
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_name_in_the_cache_is_its_folder(cache: Path) -> None:
    assert Path(local_folder("org/tiny")) == cache
    assert read_config(str(ModelSettings(path="org/tiny").path)) == {"model_type": "llama"}


def test_name_outside_the_cache_says_how_to_get_it(cache: Path) -> None:
    assert ModelSettings(path="org/other").path == "org/other"
    with pytest.raises(
        UserError, match=r"nothing is downloaded here. Get it with `huggingface-cli download org/other`"
    ):
        read_config("org/other")


def test_folder_comes_before_the_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_folder("org/tiny") == "org/tiny"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ModelSettings(path="~/models/a").path == f"{tmp_path}/models/a"


@pytest.mark.parametrize("name", ["<sft.policy>", "/absolute/model", "runs/a/export", "./org/other"])
def test_other_paths_stay_as_they_are(name: str, cache: Path) -> None:
    assert local_folder(name) == name

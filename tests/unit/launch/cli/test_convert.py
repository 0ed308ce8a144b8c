"""`quadriga convert` on the real command line."""

import json
from pathlib import Path

import pytest

from quadriga.launch.cli.app import main

ROW = {
    "id": "q",
    "prompt": "Why?",
    "responses": [{"id": "a", "text": "yes"}, {"id": "b", "text": "no"}, {"id": "c", "text": "maybe"}],
    "ranking": [["b"], ["a", "c"]],
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rankings.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


def test_convert_says_what_it_dropped(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "pairs.jsonl"
    assert main(["convert", str(source), str(target), "--to", "trl"]) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows] == [
        ("no", "yes"),
        ("no", "maybe"),
    ]
    assert capsys.readouterr().out.splitlines() == [
        "Dropped 1 tied pair(s): a preference row has a winner.",
        f"{target}: 2 row(s) of 1 ranking(s) in the form trl.",
    ]


def test_convert_with_the_form_given(source: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there.json", tmp_path / "back.jsonl"
    assert main(["convert", str(source), str(there), "--from", "quadriga", "--to", "label-studio"]) == 0
    assert main(["convert", str(there), str(back), "--from", "label-studio", "--to", "quadriga"]) == 0
    assert json.loads(back.read_text())["ranking"] == ROW["ranking"]


def test_convert_names_the_bad_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.write_text(json.dumps(ROW) + "\n" + json.dumps({"prompt": "q"}) + "\n")
    assert main(["convert", str(source), str(tmp_path / "pairs.jsonl"), "--to", "trl"]) == 2
    assert "rankings.jsonl, line 2: the columns prompt are not ranked answers" in capsys.readouterr().err
    assert not (tmp_path / "pairs.jsonl").exists()


def test_convert_keeps_an_existing_file(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "pairs.jsonl"
    target.write_text("mine")
    command = ["convert", str(source), str(target), "--to", "trl"]
    assert main(command) == 2
    assert "exists already. Give another file, or --force to replace it." in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main([*command, "--force"]) == 0
    assert len(target.read_text().splitlines()) == 2

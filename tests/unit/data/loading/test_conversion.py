"""Files of rankings in another form: whole or not at all, with an account of what was dropped."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.corpora import CORPORA, needs

from quadriga.data.errors import UserError
from quadriga.data.loading.conversion import convert
from quadriga.data.loading.ranking_formats import FormName

ASK = [{"role": "user", "content": "Why?"}]
TIED: dict[str, Any] = {
    "id": "t",
    "messages": ASK,
    "responses": [{"id": "a", "text": "1"}, {"id": "b", "text": "2"}, {"id": "c", "text": "3"}],
    "ranking": [["c"], ["a", "b"]],
    "rater": "me",
}
STRICT: dict[str, Any] = {"id": "s", "prompt": "How?", "responses": ["best", "good", "bad", "worst"]}


def write(path: Path, rows: list[Any]) -> Path:
    """Write JSON lines."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Any]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source.jsonl", [TIED, STRICT])


def test_counts_of_a_conversion(source: Path, tmp_path: Path) -> None:
    done = convert(source, tmp_path / "pairs.jsonl", "trl")
    assert (done.rankings, done.rows, done.unranked) == (2, 2 + 6, 0)
    assert done.dropped == {
        "tied pair(s): a preference row has a winner": 1,
        "value(s) of `rater`: the form has no place for them": 1,
    }
    assert len(read(tmp_path / "pairs.jsonl")) == 8


def test_pairs_of_one_ranking_become_one_ranking(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "pairs.jsonl", "trl")
    convert(tmp_path / "pairs.jsonl", tmp_path / "back.jsonl", "quadriga")
    first, second = read(tmp_path / "back.jsonl")
    assert (first["id"], first["ranking"]) == ("t", [["c"], ["a", "b"]])
    assert (second["id"], second["ranking"]) == ("s", [["0"], ["1"], ["2"], ["3"]])


@pytest.mark.parametrize("form", ["argilla", "label-studio", "quadriga"])
def test_ties_survive_a_file(source: Path, tmp_path: Path, form: FormName) -> None:
    convert(source, tmp_path / "there.json", form)
    convert(tmp_path / "there.json", tmp_path / "back.jsonl", "quadriga", from_=form)
    first, second = read(tmp_path / "back.jsonl")
    assert (first["ranking"], first["rater"]) == ([["c"], ["a", "b"]], "me")
    assert second["ranking"] == [["0"], ["1"], ["2"], ["3"]]


def test_rankings_of_one_prompt_by_two_people_stay_two(tmp_path: Path) -> None:
    """Other tools take records of one id for one record."""
    other = TIED | {"ranking": [["a"], ["b"], ["c"]]}
    convert(write(tmp_path / "two.jsonl", [TIED, other]), tmp_path / "pairs.jsonl", "trl")
    convert(tmp_path / "pairs.jsonl", tmp_path / "back.jsonl", "quadriga")
    first, second = read(tmp_path / "back.jsonl")
    assert (first["id"], first["ranking"]) == ("t", [["c"], ["a", "b"]])
    assert (second["id"], second["ranking"]) == ("t#2", [["a"], ["b"], ["c"]])


def test_json_ending_makes_a_list(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "tasks.json", "label-studio")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"]["id"] for task in tasks] == ["t", "s"]


def test_rows_without_ranked_answers_are_counted(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "tasks.jsonl", "label-studio")
    tasks = read(tmp_path / "tasks.jsonl")
    write(tmp_path / "half.jsonl", [tasks[0], tasks[1] | {"annotations": []}])
    done = convert(tmp_path / "half.jsonl", tmp_path / "out.jsonl", "quadriga")
    assert (done.rankings, done.unranked) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([TIED, "no json"], "line 2: not JSON"),
        ([TIED, {"prompt": "q"}], "line 2: the columns prompt are not ranked answers"),
        ([TIED, {"prompt": "q", "chosen": "a", "rejected": "a"}], "line 2: chosen and rejected are the same"),
    ],
)
def test_bad_row_leaves_no_file(tmp_path: Path, rows: list[Any], reason: str) -> None:
    with pytest.raises(UserError, match=rf"source\.jsonl, {reason}.* Nothing was written"):
        convert(write(tmp_path / "source.jsonl", rows), tmp_path / "out.jsonl", "trl")
    assert [path.name for path in tmp_path.iterdir()] == ["source.jsonl"]


def test_pairs_that_are_not_one_ranking_name_a_line(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "pairs.jsonl", "trl")
    pairs = read(tmp_path / "pairs.jsonl")
    write(tmp_path / "pairs.jsonl", pairs[:3] + pairs[4:])
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 3: the preference rows are not the pairs of one ranking"):
        convert(tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", "quadriga")


def test_wrong_from_is_an_error_on_the_first_line(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: .* are not those of the form argilla"):
        convert(source, tmp_path / "out.jsonl", "trl", from_="argilla")


def test_existing_file_needs_force(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"out\.jsonl exists already.*--force"):
        convert(source, tmp_path / "out.jsonl", "trl")
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    convert(source, tmp_path / "out.jsonl", "trl", force=True)
    assert len(read(tmp_path / "out.jsonl")) == 8


def test_targets_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.jsonl"):
        convert(source, tmp_path / "out.csv", "trl")
    with pytest.raises(UserError, match=r"out\.jsonl cannot be written: No such file or directory"):
        convert(source, tmp_path / "nowhere/out.jsonl", "trl")


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    tied = write(tmp_path / "tied.jsonl", [TIED | {"ranking": [["a", "b", "c"]], "rater": None}])
    with pytest.raises(UserError, match=r"Nothing of .* as trl, which cannot hold 3 tied pair\(s\)"):
        convert(tied, tmp_path / "out.jsonl", "trl")
    with pytest.raises(UserError, match="holds no ranking of two or more answers"):
        convert(write(tmp_path / "empty.jsonl", []), tmp_path / "out.jsonl", "trl")


@needs("oasst-ranked")
def test_real_trees_through_every_form(tmp_path: Path) -> None:
    """One published file has the rankings of the other: neither ties nor system messages are in it."""
    groups = []
    forms: tuple[FormName, ...] = ("trl", "openassistant", "argilla", "label-studio", "quadriga")
    for form in forms:
        convert(CORPORA / "oasst-ranked/en_100_tree.jsonl.gz", tmp_path / "there.jsonl", form, force=True)
        done = convert(tmp_path / "there.jsonl", tmp_path / "back.jsonl", "quadriga", force=True)
        assert (done.rankings, done.unranked) == (212, 0)
        rows = read(tmp_path / "back.jsonl")
        texts = [{response["id"]: response["text"] for response in row["responses"]} for row in rows]
        groups.append(
            [[[text[id_] for id_ in group] for group in row["ranking"]] for row, text in zip(rows, texts, strict=True)]
        )
    published = [[[text] for text in row["responses"]] for row in read(CORPORA / "oasst-ranked/ranked.jsonl")]
    assert sorted(groups[-1]) == sorted(published)
    assert all(found == groups[-1] for found in groups)

"""Every format gives the same rows; bad rows carry file, line and reason."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from quadriga.data.errors import UserError
from quadriga.data.loading.readers import BadRow, Row, read_source
from quadriga.data.settings import Source

ROWS = [{"text": "ünï", "n": 1}, {"text": "zwei", "n": 2}, {"text": "drei", "n": 3}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def values(path, **options):
    return [row.values for row in read_source(Source(path=str(path), **options))]


@pytest.fixture
def files(tmp_path) -> Path:
    (tmp_path / "a.jsonl").write_text("\ufeff" + LINES + "\n\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(LINES)
    (tmp_path / "c.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "e")
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.gz", "c.json", "d.parquet", "e"])
def test_each_format(files, name):
    rows = list(read_source(Source(path=str(files / name))))
    assert [row.values for row in rows] == ROWS
    assert [row.line for row in rows] == [1, 2, 3]
    assert {row.file for row in rows} == {str(files / name)}


def test_globs_are_sorted_and_rows_counts_over_all_files(files):
    assert values(files / "*.jsonl*") == ROWS + ROWS
    assert values(files / "*.jsonl*", rows=4) == [*ROWS, ROWS[0]]
    assert values(files / "a.jsonl", rows=2) == ROWS[:2]


def test_a_text_file_gives_paragraphs_with_their_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n  One\nline two\r\n\n \n\nThree\n", encoding="utf-8")
    assert list(read_source(Source(path=str(path)))) == [
        Row(str(path), 3, {"text": "One\nline two"}),
        Row(str(path), 8, {"text": "Three"}),
    ]


def test_columns_are_renamed(files):
    assert values(files / "a.jsonl", rows=1, columns={"prompt": "text"}) == [{"n": 1, "prompt": "ünï"}]
    assert values(files / "a.jsonl", rows=1, columns={"text": "n", "n": "text"}) == [{"text": 1, "n": "ünï"}]
    (bad,) = read_source(Source(path=str(files / "a.jsonl"), rows=1, columns={"prompt": "question"}))
    assert str(bad) == f"{files / 'a.jsonl'}, line 1: no column 'question' (it has text, n)"


def test_bad_rows_carry_their_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\nno json\n[1]\n{"text": "\xff"}\n{"text": "b"}')
    good, first, second, third, last = read_source(Source(path=str(path)))
    assert (good.values, last.values, last.line) == ({"text": "a"}, {"text": "b"}, 6)
    assert all(isinstance(row, BadRow) for row in (first, second, third))
    assert [first.line, second.line, third.line] == [3, 4, 5]
    assert first.reason == "not JSON (Expecting value, column 1)"
    assert "not a JSON object" in second.reason
    assert third.reason == "not UTF-8 text (invalid start byte, byte 11)"


def test_sources_that_cannot_be_read(files):
    (files / "x.json").write_text('{"text": 1}')
    (files / "y.json").write_text("nope")
    (files / "z.parquet").write_text("nope")
    (files / "z.jsonl.gz").write_text("nope")
    (files / "z.csv").write_text("a,b")
    (files / "folder").mkdir()
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(files / "splits")
    for name, reason in {
        "none.jsonl": "No file",
        "none*.jsonl": "No file",
        "x.json": "not a JSON list",
        "y.json": "is not JSON",
        "z.parquet": "not a Parquet file",
        "z.jsonl.gz": "cannot be read",
        "z.csv": "unknown format",
        "folder": "not a data set",
        "splits": "holds the splits train",
    }.items():
        with pytest.raises(UserError, match=reason):
            list(read_source(Source(path=str(files / name))))


def test_builtin_tables():
    rows = list(read_source(Source(builtin="assistant.prompts", rows=5, seed=3)))
    assert len(rows) == 5
    assert rows[0].file == "assistant.prompts"
    assert [row.values for row in rows] == [
        row.values for row in read_source(Source(builtin="assistant.prompts", rows=5, seed=3))
    ]
    with pytest.raises(UserError, match="number of rows"):
        list(read_source(Source(builtin="assistant.prompts")))

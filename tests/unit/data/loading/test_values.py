"""Values of rows: what other programs write becomes what JSON can hold, or a reason."""

import datetime
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quadriga.data.loading.readers import BadRow, Row, read_source
from quadriga.data.loading.values import cleaned
from quadriga.data.settings import Source


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (datetime.datetime(2024, 1, 1), "2024-01-01 00:00:00"),
        (Decimal("1.50"), "1.50"),
        (b"ab", "b'ab'"),
        (np.arange(3), [0, 1, 2]),
        (np.float32(0.5), 0.5),
        ((1, {"a": {2: datetime.date(2024, 1, 2)}}), [1, {"a": {"2": "2024-01-02"}}]),
        (None, None),
    ],
)
def test_other_types_become_what_json_holds(value, plain):
    assert cleaned({"extra": value}) == {"extra": plain}
    json.dumps(cleaned({"extra": value}))


def test_objects_are_the_same_text_in_every_run():
    assert cleaned({"extra": object()}) == {"extra": "<object object>"}


def test_only_null_columns_of_ours_are_left_out():
    assert cleaned({"prompt": None, "messages": [], "mine": None}) == {"messages": [], "mine": None}


@pytest.mark.parametrize("row", [{"a": "x\udc00"}, {"a": [{"b": "x\udc00"}]}, {"a": {"x\udc00": 1}}, {"x\udc00": 1}])
def test_half_a_character_is_named(row):
    with pytest.raises(ValueError, match=r"half of a character \(\\udc00\) in .*, position 2"):
        cleaned(row)


def test_whole_characters_pass():
    assert cleaned(json.loads('{"a": "\\ud83d\\ude00 ü"}')) == {"a": "😀 ü"}


def test_rows_of_files_are_cleaned(tmp_path):
    rows = [{"prompt": "a", "created": datetime.datetime(2024, 1, 1), "text": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (row,) = read_source(Source(path=str(tmp_path / "a.parquet")))
    assert row == Row(str(tmp_path / "a.parquet"), 1, {"prompt": "a", "created": "2024-01-01 00:00:00"})
    (tmp_path / "b.jsonl").write_text('{"prompt": "cut \\ud83d"}\n{"prompt": "b"}\n')
    bad, good = read_source(Source(path=str(tmp_path / "b.jsonl")))
    assert isinstance(bad, BadRow)
    assert good.values == {"prompt": "b"}

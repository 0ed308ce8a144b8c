"""Elements as packed batches, and the filler that a rank runs where it has none."""

from typing import Any

import numpy as np
import pytest

from quadriga.actors.model.batch import Element, pack_elements
from quadriga.data.tokens.packing import PackedBatch

FIELDS = ("group", "rank", "margin", "weights", "turn")


@pytest.fixture
def element() -> Element:
    """Two answers to a prompt, with per-token and per-sequence fields of both types, some of which no loss has yet."""
    return Element(
        [[1, 5, 6], [1, 7]],
        tokens={"weights": [np.ones(3, np.float32), np.ones(2, np.float32)], "turn": [[0, 1, 1], [0, 1]]},
        per_sequence={"rank": [1, 0], "margin": [0.5, -0.5]},
    )


def schema(batch: PackedBatch) -> dict[str, Any]:
    """Name -> (kind of field, type, dimensions)."""
    plain = {"token_ids": batch.token_ids, "position_ids": batch.position_ids, "cu_seqlens": batch.cu_seqlens}
    kinds = {"batch": plain, "tokens": batch.tokens, "sequences": batch.sequences}
    return {name: (kind, x.dtype, x.ndim) for kind, fields in kinds.items() for name, x in fields.items()}


def test_filler_has_the_schema_of_the_elements(element: Element) -> None:
    found = schema(pack_elements([element.filler()], FIELDS))
    assert found == schema(pack_elements([element, element], FIELDS))
    assert set(found) > set(FIELDS)


def test_every_field_of_a_filler_is_zero(element: Element) -> None:
    filler = pack_elements([element.filler()], FIELDS)
    assert filler.token_ids.tolist() == [0, 0]
    assert filler.position_ids.tolist() == [0, 1]
    assert filler.cu_seqlens.tolist() == [0, 2]
    assert {name: x.tolist() for name, x in filler.tokens.items()} == {"weights": [0, 0], "turn": [0, 0]}
    assert {name: x.tolist() for name, x in filler.sequences.items()} == {"group": [0], "rank": [0], "margin": [0]}


def test_elements_are_numbered_by_group(element: Element) -> None:
    batch = pack_elements([element, element], ("group", "rank"))
    assert batch.sequences["group"].tolist() == [0, 0, 1, 1]
    assert batch.sequences["rank"].tolist() == [1, 0, 1, 0]


def test_only_named_fields_are_packed(element: Element) -> None:
    batch = pack_elements([element], ("weights",))
    assert list(batch.tokens) == ["weights"]
    assert batch.sequences == {}


def test_missing_field_is_an_error(element: Element) -> None:
    with pytest.raises(KeyError, match="advantages"):
        pack_elements([element], ("weights", "advantages"))

"""Rows of pre-training: documents packed together up to a length."""

from quadriga.data.loading.batch_order import batch_indices
from quadriga.data.records import Tokens


def packed_documents(rows: list[Tokens], max_tokens: int, seed: int) -> list[list[Tokens]]:
    """Fill shuffled documents into rows of at most `max_tokens` tokens."""
    result: list[list[Tokens]] = []
    room = 0
    for index in batch_indices(0, len(rows), len(rows), seed) if rows else []:
        row = rows[index]
        if len(row.token_ids) > room:
            result.append([])
            room = max_tokens
        result[-1].append(row)
        room -= len(row.token_ids)
    return result

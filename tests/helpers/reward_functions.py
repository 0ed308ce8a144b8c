"""Judges of answers, as a user would write them; called by path in subprocesses."""

from typing import Any


def vowels(rows: list[dict[str, Any]]) -> list[float]:
    """How many vowels an answer has."""
    return [float(sum(letter in "aeiou" for letter in row["response"])) for row in rows]


def picky(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """As `vowels`, with the length as a part beside it; fails on questions about stones."""
    if any("stone" in row["prompt"][-1]["content"] for row in rows):
        raise ValueError("stones are not scored")
    return [
        {"score": score, "length": float(len(row["response"]))} for row, score in zip(rows, vowels(rows), strict=True)
    ]


def verlish(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As `vowels`, in the form of verl's functions: numbers, text and None beside the score."""
    return [
        {"score": score, "acc": score > 2, "pred": row["response"], "note": None, "ids": row["response_ids"]}
        for row, score in zip(rows, vowels(rows), strict=True)
    ]

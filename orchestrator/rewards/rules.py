"""Rewards by rule (`function: "quadriga.orchestrator.rewards.rules:NAME"`): no model decides, only an answer's form."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

FINAL_ANSWER = re.compile(r"####\s*(-?\$?[\d,]*\.?\d+)\s*$")
"""How grade-school solutions end (Cobbe et al. 2021, arXiv 2110.14168): `#### 72` and nothing after it."""


def final_answer(text: str) -> str | None:
    """The number that an answer ends with in the form `#### 72`, without commas and signs of currency; else None."""
    found = FINAL_ANSWER.search(text)
    return found.group(1).replace(",", "").replace("$", "") if found else None


def answer_format(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """1 for an answer that ends with `#### <number>`, else 0.

    Where a row's `meta["answer"]` holds a solution, the part `correct` says whether the numbers are equal. It is for
    reading only: the score is the format.
    """
    results = []
    for row in rows:
        given = final_answer(row["response"])
        wanted = final_answer(str(row["meta"].get("answer", "")))
        correct = given is not None and wanted is not None and float(given) == float(wanted)
        results.append({"score": float(given is not None), "correct": float(correct)})
    return results

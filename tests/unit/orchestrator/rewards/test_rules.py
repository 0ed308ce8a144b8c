"""The rule reward sees the form `#### <number>` at the end, and nothing else as it."""

import pytest

from quadriga.orchestrator.rewards.rules import answer_format, final_answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She pays 3 + 4 = 7.\n#### 7", "7"),
        ("#### 1,234 ", "1234"),
        ("####-2.5", "-2.5"),
        ("so it is\n#### $18\n", "18"),
        ("#### .5", ".5"),
        ("#### 7 apples", None),
        ("#### 7\nThat is all.", None),
        ("### 7", None),
        ("The answer is 7", None),
        ("####", None),
        ("#### ,", None),
        ("", None),
    ],
)
def test_the_end_of_an_answer(text: str, number: str | None) -> None:
    """As in the data's own solutions."""
    assert final_answer(text) == number


def test_score_is_the_format_and_correctness_is_told_apart() -> None:
    """Three answers to a question whose solution ends with 1,000."""
    meta = {"answer": "500 * 2 = 1000\n#### 1,000"}
    rows = [{"response": text, "meta": meta} for text in ("#### 1000.0", "#### 999", "1000")]
    rows.append({"response": "#### 3", "meta": {}})
    assert [(r["score"], r["correct"]) for r in answer_format(rows)] == [(1, 1), (1, 0), (0, 0), (1, 0)]

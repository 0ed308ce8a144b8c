"""The rank stage: which of the sampled answers are ranked."""

from quadriga.data.records import Prompt, Sample
from quadriga.orchestrator.stages.rank.trainer import _distinct_texts


def answer(index: int, text: str) -> Sample:
    return Sample(Prompt("p", [], [1]), index, [7], [-1.0], [1], [0], "stop", text)


def test_answers_that_differ_in_outer_space_are_one() -> None:
    """A reward stage reads both as the same tokens, and refuses different ranks for them."""
    answers = [(answer(0, "Dig a hole."), 1.0), (answer(1, " Dig a hole.\n"), 0.0), (answer(2, "Dig."), 0.5)]
    assert [sample.index for sample, _ in _distinct_texts(answers)] == [0, 2]

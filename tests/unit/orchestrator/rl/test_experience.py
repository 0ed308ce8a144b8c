"""Experience: one index space for samples, columns and numbers."""

import numpy as np
import pytest

from quadriga.data.errors import Fault
from quadriga.data.records import Prompt, Sample
from quadriga.orchestrator.rl.experience import Experience


def sample(prompt: str, mask: list[int]) -> Sample:
    """An answer whose token ids are 100, 101, ..."""
    ids, n = list(range(100, 100 + len(mask))), len(mask)
    return Sample(Prompt(prompt, [], [1, 2]), 0, ids, [0.0] * n, mask, [0] * n, "stop", "text")


@pytest.fixture
def experience() -> Experience:
    made = Experience([sample("b", [1, 0, 1]), sample("a", [1]), sample("b", [1, 1])])
    made.add({"values": [[1.0, 9.0, 2.0], [3.0], [4.0, 5.0]]})
    made.add_numbers("score", [0.5, None, 1.5])
    return made


def test_groups_number_prompts_as_they_come(experience: Experience) -> None:
    assert experience.groups().tolist() == [0, 1, 0]


def test_flat_is_action_tokens_only_and_spread_inverts_it(experience: Experience) -> None:
    flat = experience.flat("values")
    assert flat.tolist() == [1, 2, 3, 4, 5]
    assert experience.offsets.tolist() == [0, 2, 3, 5]
    assert [column.tolist() for column in experience.spread(flat)] == [[1, 0, 2], [3], [4, 5]]


def test_keep_keeps_everything_of_a_sample(experience: Experience) -> None:
    kept = experience.keep([score is not None for score in experience.numbers["score"]])
    assert [s.prompt.id for s in kept.samples] == ["b", "b"]
    assert kept.numbers == {"score": [0.5, 1.5]}
    assert [column.tolist() for column in kept.columns["values"]] == [[1, 9, 2], [4, 5]]
    assert kept.groups().tolist() == [0, 0]


def test_elements_are_aligned_with_prompt_and_answer(experience: Experience) -> None:
    (element,) = experience.elements([2], ["values"])
    assert element.sequences == [[1, 2, 100, 101]]
    assert element.tokens["values"][0].tolist() == [0, 0, 4, 5]
    assert element.tokens["values"][0].dtype == np.float32


def test_a_column_that_a_loss_misses_is_named(experience: Experience) -> None:
    with pytest.raises(Fault, match="a loss reads the column advantages, and there are only values"):
        experience.elements([0], ["values", "advantages"])

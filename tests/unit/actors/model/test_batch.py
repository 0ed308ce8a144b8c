"""Parts of an optimizer step: which of them share a forward pass."""

import pytest

from quadriga.actors.model.batch import Element, LossPart, Term, shared_passes
from quadriga.kernels.losses.likelihood import NegativeLogLikelihood
from quadriga.kernels.losses.policy import PolicyClip
from quadriga.kernels.losses.value import ValueClip


def test_parts_over_the_same_elements_share_a_pass() -> None:
    answers, text = [Element([[1, 2]])], [Element([[1, 2]])]
    surrogate, likelihood = PolicyClip(), NegativeLogLikelihood()
    parts = [
        LossPart(surrogate, answers, 4.0),
        LossPart(likelihood, text, 2.0, 0.5, "text"),
        LossPart(likelihood, answers, 4.0, 0.1, "answers"),
    ]
    assert shared_passes(parts) == [
        (answers, (Term(surrogate, 4.0), Term(likelihood, 4.0, 0.1, "answers_"))),
        (text, (Term(likelihood, 2.0, 0.5, "text_"),)),
    ]


def test_parts_of_one_pass_read_one_head() -> None:
    answers = [Element([[1, 2]])]
    with pytest.raises(ValueError, match="logprobs, values"):
        shared_passes([LossPart(PolicyClip(), answers, 1.0), LossPart(ValueClip(), answers, 1.0)])

"""Records refuse values that do not fit, and rankings know their pairs."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.data.records import Prompt, Ranking, Response, Sample, Tokens

ASK = [{"role": "user", "content": "Why?"}]


def make_sample(**changes):
    fields = {
        "prompt": Prompt("p", ASK, [1, 3, 9, 4]),
        "index": 2,
        "response_ids": [7, 8, 2],
        "rollout_logprobs": [-1.0, -0.5, -0.1],
        "action_mask": [1, 1, 1],
        "versions": [5, 5, 5],
        "finish_reason": "stop",
        "text": "so",
    }
    return Sample(**(fields | changes))


def make_ranking(groups, k=None, **changes):
    ids = [id_ for group in groups for id_ in group] if k is None else [str(n) for n in range(k)]
    return Ranking("r", ASK, [Response(id_, f"text {id_}") for id_ in sorted(ids)], groups, **changes)


def test_sample_properties():
    sample = make_sample()
    assert sample.id == "p/2"
    assert sample.token_ids == [1, 3, 9, 4, 7, 8, 2]
    assert sample.ended
    assert not make_sample(finish_reason="length").ended


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout_logprobs": [-1.0]},
        {"action_mask": [1, 1, 1, 1]},
        {"action_mask": [1, 2, 1]},
        {"versions": []},
        {"finish_reason": "abort"},
        {"response_ids": [], "rollout_logprobs": [], "action_mask": [], "versions": []},
    ],
)
def test_a_sample_that_does_not_fit_is_named(changes):
    with pytest.raises(ValueError, match="sample p/2"):
        make_sample(**changes)


def test_tokens_and_prompts_check_their_lengths():
    with pytest.raises(ValueError, match="3 tokens but a loss mask of 2"):
        Tokens([1, 2, 3], [0, 1])
    with pytest.raises(ValueError, match="prompt p: no tokens"):
        Prompt("p", ASK, [])


def test_pairs_drop_ties():
    ranking = make_ranking([["b"], ["a", "d"], ["c"]])
    assert [(w.id, loser.id) for w, loser in ranking.pairs()] == [
        ("b", "a"),
        ("b", "d"),
        ("b", "c"),
        ("a", "c"),
        ("d", "c"),
    ]
    assert ranking.ranks == [1, 0, 2, 1]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=9))
def test_pairs_are_all_pairs_of_different_ranks(numbers):
    """Independent definition: every unordered pair whose numbers differ, the smaller number winning."""
    groups = [[str(i) for i, n in enumerate(numbers) if n == rank] for rank in sorted(set(numbers))]
    ranking = make_ranking(groups, k=len(numbers))
    expected = {
        (str(i), str(j)) if numbers[i] < numbers[j] else (str(j), str(i))
        for i, j in combinations(range(len(numbers)), 2)
        if numbers[i] != numbers[j]
    }
    found = [(w.id, loser.id) for w, loser in ranking.pairs()]
    assert set(found) == expected
    assert len(found) == len(expected)
    assert Ranking.from_row(ranking.to_row()) == ranking


@pytest.mark.parametrize(
    ("groups", "k", "reason"),
    [
        ([["0"]], 2, "is in no group"),
        ([["0", "1"], ["1"]], 2, "occurs twice"),
        ([["0"], ["1"], ["2"]], 2, "not the id of an answer"),
        ([["0"]], 1, "at least two"),
        ([["0"], [], ["1"]], 2, "a group is empty"),
    ],
)
def test_a_ranking_that_does_not_fit_is_refused(groups, k, reason):
    with pytest.raises(ValueError, match=f"ranking r: .*{reason}"):
        make_ranking(groups, k)


def test_other_rankings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="occurs twice"):
        Ranking("r", ASK, [Response("a", "x"), Response("a", "y")], [["a"]])
    with pytest.raises(ValueError, match="not rankable, but ranked"):
        make_ranking([["0"], ["1"]], 2, not_rankable=True)
    with pytest.raises(ValueError, match="shown_order"):
        make_ranking([["0"], ["1"]], 2, shown_order=["0"])
    with pytest.raises(ValueError, match="the last message is the assistant's"):
        Ranking(
            "r", [*ASK, {"role": "assistant", "content": "a"}], [Response("a", "x"), Response("b", "y")], [["a", "b"]]
        )
    assert make_ranking([], 2, not_rankable=True).pairs() == []


def test_a_json_row_is_read_with_unknown_columns_in_meta():
    row = {
        "id": 7,
        "prompt": "Why?",
        "responses": [{"id": "a", "text": "x", "model": "m"}, {"id": "b", "text": "y"}],
        "ranking": [["b"], ["a"]],
        "rater": None,
        "country": "ch",
    }
    ranking = Ranking.from_row(row)
    assert ranking.messages == ASK
    assert ranking.id == "7"
    assert ranking.responses[0].model == "m"
    assert ranking.meta == {"country": "ch"}
    for broken in ({**row, "ranking": ["b", "a"]}, {**row, "responses": ["x", "y"]}, {**row, "responses": None}):
        with pytest.raises(ValueError):
            Ranking.from_row(broken)

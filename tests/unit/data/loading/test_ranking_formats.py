"""Conversions keep what the other form can hold and say what it cannot."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadriga.data.loading import ranking_formats as forms
from quadriga.data.records import Ranking, Response

ASK = [{"role": "user", "content": "Why?"}]
OASST = Path(__file__).parents[4] / "../shared/data/oasst-ranked"


@st.composite
def some_rankings(draw):
    numbers = draw(st.lists(st.integers(0, 4), min_size=2, max_size=9))
    ids = [f"id{n}" for n in range(len(numbers))]
    groups = [[ids[i] for i, n in enumerate(numbers) if n == rank] for rank in sorted(set(numbers))]
    shown = draw(st.permutations(ids))
    responses = [Response(id_, f"text of {id_}") for id_ in ids]
    return Ranking("r", ASK, responses, groups, rater="me", elapsed_ms=1500, shown_order=shown)


def order(ranking):
    return [set(group) for group in ranking.ranking]


@given(some_rankings())
def test_trl_pairs_and_back(ranking):
    rows, notes = forms.to_trl(ranking)
    k, sizes = len(ranking.responses), [len(group) for group in ranking.ranking]
    assert len(rows) == (k * k - sum(size * size for size in sizes)) // 2
    assert bool(notes) == any(size > 1 for size in sizes)
    if rows:
        back = forms.from_trl(rows)
        assert order(back) == order(ranking)
        assert {r.id: r.text for r in back.responses} == {r.id: r.text for r in ranking.responses}
        plain = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
        text = {r.id: r.text for r in forms.from_trl(plain).responses}
        assert [{text[id_] for id_ in group} for group in forms.from_trl(plain).ranking] == [
            {f"text of {id_}" for id_ in group} for group in ranking.ranking
        ]


@given(some_rankings())
def test_argilla_and_label_studio_keep_ties(ranking):
    record, notes = forms.to_argilla(ranking)
    assert not notes
    (back,) = forms.from_argilla(json.loads(json.dumps(record)))
    assert order(back) == order(ranking) and back.responses == ranking.responses and back.rater == "me"

    task, notes = forms.to_label_studio(ranking)
    assert not notes
    (back,) = forms.from_label_studio(json.loads(json.dumps(task)))
    assert order(back) == order(ranking) and back.shown_order == ranking.shown_order
    assert (back.rater, back.elapsed_ms) == ("me", 1500)


@given(some_rankings())
def test_openassistant_breaks_ties_and_says_so(ranking):
    tree, notes = forms.to_openassistant(ranking)
    (back,) = forms.from_openassistant(json.loads(json.dumps(tree)))
    flat = [id_ for group in ranking.ranking for id_ in group]
    assert back.ranking == [[id_] for id_ in flat]
    assert bool(notes) == (len(flat) > len(ranking.ranking))
    event = tree["prompt"]["events"]["ranking"][0]
    assert [ranking.responses[n].id for n in event["ranking"]] == event["ranked_message_ids"] == flat


def test_known_forms():
    """The shapes that the tools document."""
    ranking = Ranking("q", ASK, [Response("x", "1"), Response("y", "2")], [["y"], ["x"]])
    assert forms.to_argilla(ranking)[0]["responses"]["ranking"][0]["value"] == [
        {"value": "reply-2", "rank": 1},
        {"value": "reply-1", "rank": 2},
    ]
    assert forms.to_label_studio(ranking)[0]["annotations"][0]["result"] == [
        {"from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": ["y", "x"]}}
    ]
    assert forms.to_trl(ranking)[0][0]["chosen"] == [{"role": "assistant", "content": "2"}]


def test_what_is_not_rankable_stays_so():
    ranking = Ranking("q", ASK, [Response("x", "1"), Response("y", "2")], [], not_rankable=True)
    assert forms.to_trl(ranking)[0] == [] and "not_rankable" in forms.to_trl(ranking)[1][0]
    assert forms.from_argilla(forms.to_argilla(ranking)[0])[0].not_rankable
    assert forms.from_label_studio(forms.to_label_studio(ranking)[0])[0].not_rankable
    assert forms.to_openassistant(ranking)[0]["prompt"]["events"]["ranking"][0]["not_rankable"]


def test_multi_turn_prompts_and_system_messages_in_a_tree():
    messages = [{"role": "system", "content": "s"}, *ASK, {"role": "assistant", "content": "a"}, *ASK]
    ranking = Ranking(
        "q", messages, [Response("x", "1"), Response("y", "2")], [["y"], ["x"]], labels={"x": {"spam": 1}}
    )
    tree, notes = forms.to_openassistant(ranking)
    (back,) = forms.from_openassistant(tree)
    assert back.messages == messages[1:] and any("system" in note for note in notes)
    assert back.labels == {"x": {"spam": 1.0}}


def test_pairs_that_are_no_ranking_are_refused():
    def row(winner, loser):
        return {"prompt": "Why?", "chosen": winner, "rejected": loser}

    with pytest.raises(ValueError, match="not the pairs of one ranking"):
        forms.from_trl([row("a", "b"), row("b", "c"), row("c", "a")])
    with pytest.raises(ValueError, match="not the pairs of one ranking"):
        forms.from_trl([row("a", "b"), row("b", "c")])
    with pytest.raises(ValueError, match="different prompts"):
        forms.from_trl([row("a", "b"), row("a", "b") | {"prompt": "How?"}])
    for broken in ({}, {"prompt": {"role": "ghost", "text": "", "replies": []}}):
        with pytest.raises(ValueError):
            forms.from_openassistant(broken)
    with pytest.raises(ValueError, match="no ranker"):
        forms.from_label_studio({"data": {"id": 1, "prompt": "q", "items": []}, "annotations": [{"result": []}]})
    with pytest.raises(ValueError, match="ranking question"):
        forms.from_argilla({"id": 1, "fields": {"prompt": "q"}, "responses": {}})


@pytest.mark.skipif(not OASST.exists(), reason="the oasst-ranked data is not here")
def test_real_trees_give_the_published_rankings():
    """ranked.jsonl was made from the same trees by other code."""
    with gzip.open(OASST / "en_100_tree.jsonl.gz") as file:
        found = [ranking for line in file for ranking in forms.from_openassistant(json.loads(line))]
    published = [json.loads(line) for line in (OASST / "ranked.jsonl").open()]
    ours = {(json.dumps(r.messages), *(response.text for response in r.responses)) for r in found}
    theirs = {(json.dumps(row["messages"]), *row["responses"]) for row in published}
    assert len(theirs & ours) == len(theirs)

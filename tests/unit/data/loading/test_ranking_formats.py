"""Conversions keep what the other form can hold and count what it cannot."""

import gzip
import json
from typing import Any

import pytest
from helpers.corpora import CORPORA, needs
from hypothesis import given, settings
from hypothesis import strategies as st

from quadriga.data.loading import ranking_formats as forms
from quadriga.data.records import Ranking, Response

ASK = [{"role": "user", "content": "Why?"}]
TIED = Ranking("q", ASK, [Response("x", "1"), Response("y", "2"), Response("z", "3")], [["y"], ["x", "z"]])
UNRANKED = Ranking("q", ASK, [Response("x", "1"), Response("y", "2")], [], not_rankable=True)


@st.composite
def some_rankings(draw: st.DrawFn) -> Ranking:
    """Two to nine answers in any groups of ties."""
    numbers = draw(st.lists(st.integers(0, 4), min_size=2, max_size=9))
    ids = [f"id{n}" for n in range(len(numbers))]
    groups = [[ids[i] for i, n in enumerate(numbers) if n == rank] for rank in sorted(set(numbers))]
    shown = draw(st.permutations(ids))
    responses = [Response(id_, f"text of {id_}") for id_ in ids]
    return Ranking("r", ASK, responses, groups, rater="me", elapsed_ms=1500, shown_order=shown)


def order(ranking: Ranking) -> list[set[str]]:
    """Return the groups of a ranking without the order inside a group."""
    return [set(group) for group in ranking.ranking]


def through_json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows as another program would read them."""
    return json.loads(json.dumps(rows))


@settings(deadline=None)
@given(some_rankings())
def test_trl_has_one_row_per_pair(ranking: Ranking) -> None:
    rows, dropped = forms.to_trl(ranking)
    k, sizes = len(ranking.responses), [len(group) for group in ranking.ranking]
    assert len(rows) == (k * k - sum(size * size for size in sizes)) // 2
    assert sum(dropped.values()) == sum(size * (size - 1) // 2 for size in sizes)


@settings(deadline=None)
@given(some_rankings().filter(lambda ranking: len(ranking.ranking) > 1))
def test_trl_round_trip(ranking: Ranking) -> None:
    rows, _ = forms.to_trl(ranking)
    back = forms.from_trl(through_json(rows))
    assert order(back) == order(ranking)
    assert {r.id: r.text for r in back.responses} == {r.id: r.text for r in ranking.responses}


@settings(deadline=None)
@given(some_rankings().filter(lambda ranking: len(ranking.ranking) > 1))
def test_trl_rows_of_others_are_joined_by_text(ranking: Ranking) -> None:
    plain = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in forms.to_trl(ranking)[0]]
    back = forms.from_trl(plain)
    text = {r.id: r.text for r in back.responses}
    assert [{text[id_] for id_ in group} for group in back.ranking] == [
        {f"text of {id_}" for id_ in group} for group in ranking.ranking
    ]


@settings(deadline=None)
@given(some_rankings())
def test_argilla_round_trip_keeps_ties(ranking: Ranking) -> None:
    rows, dropped = forms.to_argilla(ranking)
    assert not dropped
    (back,) = forms.from_argilla(*through_json(rows))
    assert order(back) == order(ranking)
    assert back.responses == ranking.responses
    assert back.rater == "me"


@settings(deadline=None)
@given(some_rankings())
def test_label_studio_round_trip_keeps_ties(ranking: Ranking) -> None:
    rows, dropped = forms.to_label_studio(ranking)
    assert not dropped
    (back,) = forms.from_label_studio(*through_json(rows))
    assert order(back) == order(ranking)
    assert back.shown_order == ranking.shown_order
    assert (back.rater, back.elapsed_ms) == ("me", 1500)


@settings(deadline=None)
@given(some_rankings())
def test_openassistant_breaks_ties_and_counts_them(ranking: Ranking) -> None:
    (tree,), dropped = forms.to_openassistant(ranking)
    (back,) = forms.from_openassistant(*through_json([tree]))
    flat = [id_ for group in ranking.ranking for id_ in group]
    assert back.ranking == [[id_] for id_ in flat]
    assert bool(dropped) == (len(flat) > len(ranking.ranking))
    event = tree["prompt"]["events"]["ranking"][0]
    assert event["ranked_message_ids"] == flat
    assert [ranking.responses[n].id for n in event["ranking"]] == flat


@settings(deadline=None)
@given(some_rankings())
def test_own_form_round_trip(ranking: Ranking) -> None:
    rows, dropped = forms.write(ranking, "quadriga")
    assert not dropped
    assert forms.read(*through_json(rows)) == [ranking]


def test_trl_rows_by_hand() -> None:
    def row(loser: str, text: str) -> dict[str, Any]:
        winner, rejected = {"role": "assistant", "content": "2"}, {"role": "assistant", "content": text}
        ids = {"id": "q", "chosen_id": "y", "rejected_id": loser}
        return {"prompt": ASK, "chosen": [winner], "rejected": [rejected]} | ids

    rows, dropped = forms.to_trl(TIED)
    assert rows == [row("x", "1"), row("z", "3")]
    assert dropped == {"tied pair(s): a preference row has a winner": 1}


def test_argilla_record_by_hand() -> None:
    assert forms.to_argilla(TIED)[0] == [
        {
            "id": "q",
            "fields": {"prompt": ASK, "reply-1": "1", "reply-2": "2", "reply-3": "3"},
            "responses": {
                "ranking": [
                    {
                        "value": [
                            {"value": "reply-2", "rank": 1},
                            {"value": "reply-1", "rank": 2},
                            {"value": "reply-3", "rank": 2},
                        ],
                        "status": "submitted",
                        "user_id": None,
                    }
                ]
            },
            "metadata": {"response_ids": ["x", "y", "z"], "source": "human", "iteration": 0},
        }
    ]


def test_label_studio_results_by_hand() -> None:
    strict = Ranking("q", ASK, TIED.responses, [["y"], ["z"], ["x"]])
    results = [forms.to_label_studio(ranking)[0][0]["annotations"][0]["result"] for ranking in (strict, TIED)]
    expected = {"from_name": "rank", "to_name": "results", "type": "ranker"}
    assert results == [
        [expected | {"value": {"ranker": ["y", "z", "x"]}}],
        [expected | {"value": {"ranker": {"1": ["y"], "2": ["x", "z"]}}}],
    ]


def test_openassistant_tree_by_hand() -> None:
    (tree,), dropped = forms.to_openassistant(TIED)
    assert tree["prompt"]["role"] == "prompter"
    assert tree["prompt"]["text"] == "Why?"
    assert [(reply["text"], reply["rank"]) for reply in tree["prompt"]["replies"]] == [("1", 1), ("2", 0), ("3", 2)]
    ((reason, count),) = dropped.items()
    assert reason.startswith("tied pair(s): `rank` has no ties")
    assert count == 1


def test_argilla_question_may_have_any_name() -> None:
    """Two people ranked, one has only drafted, and there is a question of another kind."""
    values = [[{"value": "b", "rank": 1}, {"value": "a", "rank": 5}], [{"value": "a", "rank": 2}]]
    record = {
        "id": 7,
        "fields": {"prompt": "Why?", "a": "1", "b": "2"},
        "responses": {
            "comment": [{"value": "fine", "user_id": 3}],
            "preference": [{"value": values[0], "user_id": 3}, {"value": values[1], "user_id": 4, "status": "draft"}],
        },
    }
    (ranking,) = forms.read(record)
    assert (ranking.id, ranking.messages, ranking.rater) == ("7", ASK, "3")
    assert ranking.ranking == [["b"], ["a"]]


def test_label_studio_task_has_one_ranking_per_person() -> None:
    def annotation(person: int, ranker: Any) -> dict[str, Any]:
        return {"completed_by": person, "result": [{"type": "ranker", "value": {"ranker": ranker}}]}

    items = [{"id": n, "title": "", "body": text} for n, text in ((1, "one"), (2, "two"), (3, "three"))]
    buckets = {"10": [1], "9": [2, 3], "2": []}
    annotations = [annotation(5, [3, 1, 2]), annotation(6, buckets)]
    first, second = forms.read({"id": 4, "data": {"prompt": "Why?", "items": items}, "annotations": annotations})
    assert (first.id, first.rater, first.ranking) == ("4", "5", [["3"], ["1"], ["2"]])
    assert (second.id, second.rater, second.ranking) == ("4", "6", [["2", "3"], ["1"]])
    assert [response.text for response in first.responses] == ["one", "two", "three"]


def test_not_rankable_has_no_preference_rows() -> None:
    rows, dropped = forms.to_trl(UNRANKED)
    assert rows == []
    assert dropped == {"ranking(s) marked `not_rankable`: a preference row has a winner": 1}


@pytest.mark.parametrize("form", ["argilla", "label-studio", "quadriga"])
def test_not_rankable_stays_so(form: forms.FormName) -> None:
    rows, _ = forms.write(UNRANKED, form)
    (back,) = forms.read(*through_json(rows))
    assert back.not_rankable
    assert back.ranking == []


def test_not_rankable_is_in_the_ranking_event() -> None:
    (tree,), _ = forms.to_openassistant(UNRANKED)
    assert tree["prompt"]["events"]["ranking"][0]["not_rankable"]
    assert forms.read(tree) == []


def test_system_messages_do_not_fit_in_a_tree() -> None:
    messages = [{"role": "system", "content": "s"}, *ASK, {"role": "assistant", "content": "a"}, *ASK]
    labels = {"x": {"spam": 1, "why": "it sells"}}
    ranking = Ranking("q", messages, [Response("x", "1"), Response("y", "2")], [["y"], ["x"]], labels=labels)
    (tree,), dropped = forms.to_openassistant(ranking)
    (back,) = forms.from_openassistant(tree)
    assert back.messages == messages[1:]
    assert back.labels == {"x": {"spam": 1.0}}
    assert dropped == {
        "system message(s): a message tree has prompter and assistant only": 1,
        "label(s) that are not numbers": 1,
    }


@pytest.mark.parametrize(
    ("form", "lost"),
    [
        ("trl", {"labels", "rater", "created", "elapsed_ms", "shown_order", "source", "iteration", "meta", "model"}),
        ("openassistant", {"rater", "created", "elapsed_ms", "shown_order", "source", "iteration", "meta"}),
        ("argilla", {"labels", "created", "elapsed_ms", "shown_order", "meta", "model"}),
        ("label-studio", {"labels", "source", "iteration", "meta", "model"}),
        ("quadriga", set()),
    ],
)
def test_fields_without_a_place_are_counted(form: forms.FormName, lost: set[str]) -> None:
    full = Ranking(
        "q",
        ASK,
        [Response("x", "1", "m", -1.5), Response("y", "2", "m", -2.5)],
        [["y"], ["x"]],
        labels={"x": {"spam": 1}},
        rater="me",
        created="2024-05-01",
        elapsed_ms=1500,
        shown_order=["y", "x"],
        source="ai",
        iteration=2,
        meta={"topic": "t"},
    )
    _, dropped = forms.write(full, form)
    counts = {"model": 2, "logprob": 2}
    lost = lost | ({"logprob"} if form != "quadriga" else set())
    assert dropped == {f"value(s) of `{name}`: the form has no place for them": counts.get(name, 1) for name in lost}


@pytest.mark.parametrize("form", list(forms.FORMS))
def test_forms_are_recognised_by_their_columns(form: forms.FormName) -> None:
    (row, *_), _ = forms.write(TIED, form)
    assert forms.form_of(row) == form


def test_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the columns prompt, answer are not ranked answers: expected chosen .*"):
        forms.read({"prompt": "q", "answer": "a"})
    with pytest.raises(ValueError, match="the columns chosen, rejected are not those of the form argilla"):
        forms.read({"chosen": "a", "rejected": "b"}, "argilla")


def pair(winner: str, loser: str) -> dict[str, Any]:
    """Return a preference row."""
    return {"prompt": "Why?", "chosen": winner, "rejected": loser}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([pair("a", "b"), pair("b", "c"), pair("c", "a")], "not the pairs of one ranking"),
        ([pair("a", "b"), pair("b", "c")], "not the pairs of one ranking"),
        ([pair("a", "b"), pair("a", "b") | {"prompt": "How?"}], "different prompts"),
        ([], "no preference rows"),
    ],
)
def test_pairs_that_are_not_a_ranking_are_refused(rows: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        forms.from_trl(rows)


@pytest.mark.parametrize(
    ("row", "form", "reason"),
    [
        ({"prompt": {"replies": []}}, "openassistant", "role None"),
        ({"prompt": {"role": "ghost", "text": "", "replies": []}}, "openassistant", "role 'ghost'"),
        ({"prompt": {"role": "prompter", "replies": []}}, "openassistant", "not a message tree: 'text'"),
        ({"data": {"prompt": "q", "items": []}, "annotations": [{"result": []}]}, "label-studio", "no ranker"),
        ({"data": {"prompt": "q", "items": []}, "annotations": ["x"]}, "label-studio", "not a Label Studio task"),
        ({"id": 1, "fields": {"prompt": "q"}, "responses": {}}, "argilla", "ranking question"),
        ({"id": 1, "fields": {"prompt": "q"}, "responses": ["x"]}, "argilla", "not an Argilla record"),
        ({"fields": {"a": "q"}, "responses": {}}, "argilla", "field `prompt`"),
    ],
)
def test_records_that_do_not_fit_are_refused(row: dict[str, Any], form: forms.FormName, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        forms.read(row, form)


@needs("oasst-ranked")
def test_real_trees_give_the_published_rankings() -> None:
    """ranked.jsonl was made from the same trees by other code."""
    with gzip.open(CORPORA / "oasst-ranked/en_100_tree.jsonl.gz") as file:
        found = [ranking for line in file for ranking in forms.read(json.loads(line))]
    published = [json.loads(line) for line in (CORPORA / "oasst-ranked/ranked.jsonl").open()]
    ours = {(json.dumps(r.messages), *(response.text for response in r.responses)) for r in found}
    theirs = {(json.dumps(row["messages"]), *row["responses"]) for row in published}
    assert len(theirs & ours) == len(theirs)

"""Rankings to and from the forms of TRL, Open-Assistant, Argilla and Label Studio.

Every `to_` function returns the other form and a list of notes: one sentence for each thing the form cannot hold and
that was dropped; no notes, nothing lost that matters for training. Every `from_` function raises ValueError with the
reason when a record does not fit.
"""

from itertools import groupby
from typing import Any

from quadriga.data.loading.rows import ranking as ranking_of_row
from quadriga.data.records import Message, Ranking, Response

Row = dict[str, Any]


def to_trl(ranking: Ranking) -> tuple[list[Row], list[str]]:
    """Preference rows with explicit prompt, conversational, one a pair.

    The columns `id`, `chosen_id` and `rejected_id` are ours; they let `from_trl` put the answers together again.
    """
    tied = sum(len(group) * (len(group) - 1) // 2 for group in ranking.ranking)
    notes = [f"{tied} tied pair(s) were dropped: a preference row has a winner"] if tied else []
    if ranking.not_rankable:
        notes.append("the mark `not_rankable` was dropped: a preference row has a winner")
    rows = [
        {
            "id": ranking.id,
            "prompt": ranking.messages,
            "chosen": [{"role": "assistant", "content": winner.text}],
            "rejected": [{"role": "assistant", "content": loser.text}],
            "chosen_id": winner.id,
            "rejected_id": loser.id,
        }
        for winner, loser in ranking.pairs()
    ]
    return rows, notes


def from_trl(rows: list[Row]) -> Ranking:
    """The ranking behind all preference rows of one prompt.

    An answer's group follows from the number of answers that beat it; answers that are never compared are ties. Raises
    ValueError when the pairs are not those of one ranking (missing pairs, circles, different prompts).
    """
    pairs = [ranking_of_row(row) for row in rows]
    if not pairs:
        raise ValueError("no preference rows")
    if any(pair.messages != pairs[0].messages for pair in pairs):
        raise ValueError("the preference rows have different prompts")
    texts: dict[str, str] = {}
    beaten_by: dict[str, set[str]] = {}
    for row, pair in zip(rows, pairs, strict=True):
        ids = []
        for response in pair.responses:
            id_ = str(row.get(f"{response.id}_id") or _id_of(texts, response.text))
            if texts.setdefault(id_, response.text) != response.text:
                raise ValueError(f"answer {id_!r} has two texts")
            ids.append(id_)
            beaten_by.setdefault(id_, set())
        beaten_by[ids[1]].add(ids[0])
    order = sorted(beaten_by, key=lambda id_: len(beaten_by[id_]))
    groups = [list(group) for _, group in groupby(order, key=lambda id_: len(beaten_by[id_]))]
    ranking = Ranking(
        id=pairs[0].id,
        messages=pairs[0].messages,
        responses=[Response(id_, text) for id_, text in texts.items()],
        ranking=groups,
        meta={name: value for name, value in pairs[0].meta.items() if name not in ("chosen_id", "rejected_id")},
    )
    if {(w.id, loser.id) for w, loser in ranking.pairs()} != {(w, id_) for id_ in order for w in beaten_by[id_]}:
        raise ValueError("the preference rows are not the pairs of one ranking with ties")
    return ranking


def _id_of(texts: dict[str, str], text: str) -> str:
    return next((id_ for id_, known in texts.items() if known == text), str(len(texts)))


_TO_OASST = {"user": "prompter", "assistant": "assistant"}
_FROM_OASST = {"prompter": "user", "assistant": "assistant"}


def to_openassistant(ranking: Ranking) -> tuple[Row, list[str]]:
    """A message tree as in the Open-Assistant export; the answers carry `rank`, their parent the ranking event."""
    notes = []
    if any(len(group) > 1 for group in ranking.ranking):
        notes.append("ties were broken in the order of the answers: `rank` has none")
    messages = [message for message in ranking.messages if message["role"] in _TO_OASST]
    if len(messages) < len(ranking.messages):
        notes.append("system messages were dropped: a message tree has prompter and assistant only")
    order = [id_ for group in ranking.ranking for id_ in group]
    ids = [response.id for response in ranking.responses]
    event = {
        "type": "ranking",
        "ranking": [ids.index(id_) for id_ in order],
        "ranked_message_ids": order,
        "ranking_parent_id": f"{ranking.id}/{len(messages) - 1}",
        "message_tree_id": ranking.id,
        "not_rankable": ranking.not_rankable,
    }
    replies = [
        {
            "message_id": response.id,
            "parent_id": event["ranking_parent_id"],
            "text": response.text,
            "role": "assistant",
            "rank": order.index(response.id) if order else None,
            "synthetic": response.model is not None,
            "model_name": response.model,
            "labels": {name: {"value": float(value), "count": 1} for name, value in _numbers(ranking, response.id)},
            "replies": [],
        }
        for response in ranking.responses
    ]
    if any(not isinstance(value, int | float) for labels in ranking.labels.values() for value in labels.values()):
        notes.append("labels that are not numbers were dropped")
    node: Row = {}
    for depth, message in reversed(list(enumerate(messages))):
        node = {
            "message_id": f"{ranking.id}/{depth}",
            "parent_id": f"{ranking.id}/{depth - 1}" if depth else None,
            "text": message["content"],
            "role": _TO_OASST[message["role"]],
            "replies": [node] if node else replies,
            "events": {} if node else {"ranking": [event]},
        }
    return {"message_tree_id": ranking.id, "tree_state": "ready_for_export", "prompt": node}, notes


def _numbers(ranking: Ranking, id_: str) -> list[tuple[str, float]]:
    return [(name, value) for name, value in ranking.labels.get(id_, {}).items() if isinstance(value, int | float)]


def from_openassistant(tree: Row) -> list[Ranking]:
    """One ranking for each message of the tree with two or more ranked answers."""
    found: list[Ranking] = []

    def visit(node: Row, before: list[Message]) -> None:
        if node.get("role") not in _FROM_OASST:
            raise ValueError(f"message {node.get('message_id')!r} has role {node.get('role')!r}")
        messages = [*before, {"role": _FROM_OASST[node["role"]], "content": node["text"]}]
        replies = node.get("replies") or []
        ranked = [reply for reply in replies if reply.get("rank") is not None and reply.get("role") == "assistant"]
        if len(ranked) >= 2:
            ranked.sort(key=lambda reply: reply["rank"])
            found.append(_of_replies(node, messages, ranked))
        for reply in replies:
            visit(reply, messages)

    try:
        visit(tree["prompt"], [])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a message tree: {error}") from None
    return found


def _of_replies(node: Row, messages: list[Message], ranked: list[Row]) -> Ranking:
    groups = [list(group) for _, group in groupby(ranked, key=lambda reply: reply["rank"])]
    labels = {
        reply["message_id"]: {name: label["value"] for name, label in reply["labels"].items()}
        for reply in ranked
        if reply.get("labels")
    }
    return Ranking(
        id=node["message_id"],
        messages=messages,
        responses=[Response(reply["message_id"], reply["text"], reply.get("model_name")) for reply in ranked],
        ranking=[[reply["message_id"] for reply in group] for group in groups],
        labels=labels,
    )


def to_argilla(ranking: Ranking) -> tuple[Row, list[str]]:
    """A record for `RankingQuestion(name="ranking", values=["reply-1", ...])`; a tie is an equal rank."""
    names = {response.id: f"reply-{n}" for n, response in enumerate(ranking.responses, 1)}
    rank = {id_: n for n, group in enumerate(ranking.ranking, 1) for id_ in group}
    value = [{"value": names[id_], "rank": rank[id_]} for id_ in sorted(rank, key=lambda id_: (rank[id_], names[id_]))]
    answer = {"value": value, "status": "discarded" if ranking.not_rankable else "submitted", "user_id": ranking.rater}
    notes = ["labels were dropped: they need questions of their own"] if ranking.labels else []
    metadata = {"response_ids": list(names), "source": ranking.source, "iteration": ranking.iteration}
    return {
        "id": ranking.id,
        "fields": {"prompt": ranking.messages} | {names[response.id]: response.text for response in ranking.responses},
        "responses": {"ranking": [answer]},
        "metadata": metadata,
    }, notes


def from_argilla(record: Row, question: str = "ranking") -> list[Ranking]:
    """One ranking for each rater's answer to the ranking question. Skipped rank numbers do not matter."""
    try:
        fields, metadata = record["fields"], record.get("metadata") or {}
        names = [name for name in fields if name != "prompt"]
        ids = dict(zip(names, metadata.get("response_ids") or names, strict=True))
        prompt = fields["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        rankings = []
        for answer in record["responses"][question]:
            value = sorted(answer["value"] or [], key=lambda item: item["rank"])
            groups = [[ids[item["value"]] for item in group] for _, group in groupby(value, lambda item: item["rank"])]
            rankings.append(
                Ranking(
                    id=str(record["id"]),
                    messages=messages,
                    responses=[Response(ids[name], fields[name]) for name in names],
                    ranking=[] if answer.get("status") == "discarded" else groups,
                    not_rankable=answer.get("status") == "discarded",
                    rater=answer.get("user_id"),
                    source=metadata.get("source", "human"),
                    iteration=metadata.get("iteration", 0),
                )
            )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an Argilla record with the ranking question {question!r}: {error}") from None
    return rankings


def to_label_studio(ranking: Ranking) -> tuple[Row, list[str]]:
    """A task for `<List name="results" value="$items"/><Ranker name="rank" toName="results"/>` with its annotation.

    Without ties the ranker's value is a list; with ties a dictionary of buckets "1" (best), "2", ..., for which the
    labelling interface needs a `Bucket` of each name.
    """
    tied = any(len(group) > 1 for group in ranking.ranking)
    ranker: Any = [id_ for group in ranking.ranking for id_ in group]
    if tied:
        ranker = {str(n): group for n, group in enumerate(ranking.ranking, 1)}
    result = {"from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": ranker}}
    annotation = {
        "result": [] if ranking.not_rankable else [result],
        "was_cancelled": ranking.not_rankable,
        "completed_by": ranking.rater,
        "created_at": ranking.created,
        "lead_time": ranking.elapsed_ms / 1000 if ranking.elapsed_ms is not None else None,
    }
    notes = ["labels were dropped: they need controls of their own"] if ranking.labels else []
    items = [{"id": response.id, "title": "", "body": response.text} for response in _as_shown(ranking)]
    return {"data": {"id": ranking.id, "prompt": ranking.messages, "items": items}, "annotations": [annotation]}, notes


def _as_shown(ranking: Ranking) -> list[Response]:
    by_id = {response.id: response for response in ranking.responses}
    return [by_id[id_] for id_ in ranking.shown_order] or ranking.responses


def from_label_studio(task: Row) -> list[Ranking]:
    """One ranking for each annotation of the task (`Ranker`)."""
    try:
        data = task["data"]
        prompt = data["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        items = data["items"]
        return [
            Ranking(
                id=str(data.get("id", task.get("id"))),
                messages=messages,
                responses=[Response(str(item["id"]), item["body"]) for item in items],
                ranking=_label_studio_groups(annotation),
                not_rankable=bool(annotation.get("was_cancelled")),
                rater=annotation.get("completed_by"),
                created=annotation.get("created_at"),
                elapsed_ms=round(annotation["lead_time"] * 1000) if annotation.get("lead_time") is not None else None,
                shown_order=[str(item["id"]) for item in items],
            )
            for annotation in task["annotations"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a Label Studio task with a ranker: {error}") from None


def _label_studio_groups(annotation: Row) -> list[list[str]]:
    """Buckets are ordered by number where their names are numbers, else as they come."""
    if annotation.get("was_cancelled"):
        return []
    ranker = next((item["value"]["ranker"] for item in annotation["result"] if item["type"] == "ranker"), None)
    if ranker is None:
        raise ValueError("an annotation has no ranker result")
    if isinstance(ranker, list):
        return [[id_] for id_ in ranker]
    names = sorted(ranker, key=int) if all(name.isdigit() for name in ranker) else list(ranker)
    return [list(ranker[name]) for name in names if ranker[name]]

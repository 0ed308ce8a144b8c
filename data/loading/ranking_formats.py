"""Ranking formats: rankings to and from the forms of TRL, OpenAssistant, Argilla and Label Studio.

`read` recognises the form of a row by its columns. Every `to_` function returns the rows of the other form and
counts the losses: content that the form cannot hold. `write` adds the fields of a `Ranking` that have no place in the
form. Every `from_` function raises ValueError with the reason when a record does not fit.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from quadriga.data.loading.rows import content_id
from quadriga.data.loading.rows import ranking as ranking_of_row
from quadriga.data.records import Message, Ranking, Response

Row = dict[str, Any]
Dropped = Counter[str]
"""Losses of a conversion: a noun phrase with the reason -> its count."""
FormName = Literal["quadriga", "trl", "openassistant", "argilla", "label-studio"]


def to_trl(ranking: Ranking) -> tuple[list[Row], Dropped]:
    """Return conversational preference rows with an explicit prompt, one per pair.

    The columns `id`, `chosen_id` and `rejected_id` are our addition: with them `from_trl` rebuilds the ranking.
    """
    dropped: Dropped = Counter()
    if tied := _tied_pairs(ranking):
        dropped["tied pair(s): a preference row has a winner"] = tied
    if ranking.not_rankable:
        dropped["ranking(s) marked `not_rankable`: a preference row has a winner"] = 1
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
    return rows, dropped


def from_trl(rows: list[Row]) -> Ranking:
    """Return the ranking behind all preference rows of one prompt.

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


def ranking_id(row: Row) -> str | None:
    """Return the id of the ranking that `to_trl` made a preference row of, or None for rows of other origin."""
    return str(row["id"]) if {"id", "chosen_id", "rejected_id"} <= row.keys() else None


def _id_of(texts: dict[str, str], text: str) -> str:
    return next((id_ for id_, known in texts.items() if known == text), str(len(texts)))


def _tied_pairs(ranking: Ranking) -> int:
    return sum(len(group) * (len(group) - 1) // 2 for group in ranking.ranking)


_TO_OASST = {"user": "prompter", "assistant": "assistant"}
_FROM_OASST = {"prompter": "user", "assistant": "assistant"}


def to_openassistant(ranking: Ranking) -> tuple[list[Row], Dropped]:
    """Return a message tree as in the OpenAssistant export.

    The answers carry `rank`, counted from 0; their parent carries the ranking event.
    """
    dropped: Dropped = Counter()
    if tied := _tied_pairs(ranking):
        dropped["tied pair(s): `rank` has no ties, so tied answers are ranked in the order in which they stand"] = tied
    messages = [message for message in ranking.messages if message["role"] in _TO_OASST]
    if system := len(ranking.messages) - len(messages):
        dropped["system message(s): a message tree has prompter and assistant only"] = system
    if unheld := sum(not _is_number(value) for labels in ranking.labels.values() for value in labels.values()):
        dropped["label(s) that are not numbers"] = unheld
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
            "labels": {
                name: {"value": float(value), "count": 1}
                for name, value in ranking.labels.get(response.id, {}).items()
                if _is_number(value)
            },
            "replies": [],
        }
        for response in ranking.responses
    ]
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
    return [{"message_tree_id": ranking.id, "tree_state": "ready_for_export", "prompt": node}], dropped


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def from_openassistant(tree: Row) -> list[Ranking]:
    """Return one ranking per message of the tree that has two or more ranked answers."""
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
    except (KeyError, TypeError, AttributeError) as error:
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


def to_argilla(ranking: Ranking) -> tuple[list[Row], Dropped]:
    """Return a record for `RankingQuestion(name="ranking", values=["reply-1", ...])`; a tie is an equal rank."""
    names = {response.id: f"reply-{n}" for n, response in enumerate(ranking.responses, 1)}
    rank = {id_: n for n, group in enumerate(ranking.ranking, 1) for id_ in group}
    value = [{"value": names[id_], "rank": rank[id_]} for id_ in sorted(rank, key=lambda id_: (rank[id_], names[id_]))]
    answer = {"value": value, "status": "discarded" if ranking.not_rankable else "submitted", "user_id": ranking.rater}
    metadata = {"response_ids": list(names), "source": ranking.source, "iteration": ranking.iteration}
    record = {
        "id": ranking.id,
        "fields": {"prompt": ranking.messages} | {names[response.id]: response.text for response in ranking.responses},
        "responses": {"ranking": [answer]},
        "metadata": metadata,
    }
    return [record], Counter()


def from_argilla(record: Row) -> list[Ranking]:
    """Return one ranking per submitted or discarded answer to the ranking question.

    The field `prompt` (text or messages) is the prompt, every other field one of the answers. The ranking question is
    the one whose values have ranks, whatever its name; gaps between rank numbers do not matter.
    """
    try:
        fields, metadata = record["fields"], record.get("metadata") or {}
        names = [name for name in fields if name != "prompt"]
        ids = dict(zip(names, metadata.get("response_ids") or names, strict=True))
        messages = _prompt_messages(fields["prompt"])
        rankings = []
        for answer in _answers_with_ranks(record["responses"]):
            if answer.get("status") == "draft":
                continue
            discarded = answer.get("status") == "discarded"
            value = sorted(answer.get("value") or [], key=lambda item: item["rank"])
            groups = [[ids[item["value"]] for item in group] for _, group in groupby(value, lambda item: item["rank"])]
            rankings.append(
                Ranking(
                    id=str(record["id"]),
                    messages=messages,
                    responses=[Response(ids[name], fields[name]) for name in names],
                    ranking=[] if discarded else groups,
                    not_rankable=discarded,
                    rater=_text_or_none(answer.get("user_id")),
                    source=metadata.get("source", "human"),
                    iteration=metadata.get("iteration", 0),
                )
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an Argilla record with a field `prompt` and a ranking question: {error}") from None
    return rankings


def _answers_with_ranks(responses: Row) -> list[Row]:
    """Return the answers to the ranking question: `ranking`, unless the values of another one have ranks."""
    for answers in responses.values():
        values = [answer.get("value") for answer in answers]
        if any(isinstance(value, list) and value and "rank" in value[0] for value in values):
            return list(answers)
    return list(responses["ranking"])


def to_label_studio(ranking: Ranking) -> tuple[list[Row], Dropped]:
    """Return a task for `<List name="results" value="$items"/><Ranker name="rank" toName="results"/>`, annotated.

    Without ties the ranker's value is a list; with ties it is a dictionary of buckets "1" (best), "2", ..., for which
    the labelling interface needs a `Bucket` of each name.
    """
    ranker: Any = [id_ for group in ranking.ranking for id_ in group]
    if _tied_pairs(ranking):
        ranker = {str(n): group for n, group in enumerate(ranking.ranking, 1)}
    result = {"from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": ranker}}
    annotation = {
        "result": [] if ranking.not_rankable else [result],
        "was_cancelled": ranking.not_rankable,
        "completed_by": ranking.rater,
        "created_at": ranking.created,
        "lead_time": ranking.elapsed_ms / 1000 if ranking.elapsed_ms is not None else None,
    }
    items = [{"id": response.id, "title": "", "body": response.text} for response in _as_shown(ranking)]
    task = {"data": {"id": ranking.id, "prompt": ranking.messages, "items": items}, "annotations": [annotation]}
    return [task], Counter()


def _as_shown(ranking: Ranking) -> list[Response]:
    by_id = {response.id: response for response in ranking.responses}
    return [by_id[id_] for id_ in ranking.shown_order] or ranking.responses


def from_label_studio(task: Row) -> list[Ranking]:
    """Return one ranking per annotation of the task (`Ranker`)."""
    try:
        data = task["data"]
        messages = _prompt_messages(data["prompt"])
        items = data["items"]
        id_ = next((given for given in (data.get("id"), task.get("id")) if given is not None), None)
        return [
            Ranking(
                id=content_id(messages) if id_ is None else str(id_),
                messages=messages,
                responses=[Response(str(item["id"]), item["body"]) for item in items],
                ranking=_label_studio_groups(annotation),
                not_rankable=bool(annotation.get("was_cancelled")),
                rater=_text_or_none(annotation.get("completed_by")),
                created=annotation.get("created_at"),
                elapsed_ms=round(annotation["lead_time"] * 1000) if annotation.get("lead_time") is not None else None,
                shown_order=[str(item["id"]) for item in items],
            )
            for annotation in task["annotations"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a Label Studio task with a ranker: {error}") from None


def _label_studio_groups(annotation: Row) -> list[list[str]]:
    """Return groups of answer ids, best first: by number where the buckets' names are numbers, else as they come."""
    if annotation.get("was_cancelled"):
        return []
    ranker = next((item["value"]["ranker"] for item in annotation["result"] if item["type"] == "ranker"), None)
    if ranker is None:
        raise ValueError("an annotation has no ranker result")
    if isinstance(ranker, list):
        return [[str(id_)] for id_ in ranker]
    names = sorted(ranker, key=int) if all(name.isdigit() for name in ranker) else list(ranker)
    return [[str(id_) for id_ in ranker[name]] for name in names if ranker[name]]


def _prompt_messages(prompt: Any) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write rankings down.

    matches: whether a row has this form, by its columns. read: the rankings of one row. write: the rows of one ranking
    and its losses. keeps: the fields of `Ranking` beyond prompt, answers and groups that `write` keeps;
    `model` and `logprob` are those of the answers.
    """

    matches: Callable[[Row], bool]
    read: Callable[[Row], list[Ranking]]
    write: Callable[[Ranking], tuple[list[Row], Dropped]]
    keeps: frozenset[str] = frozenset()


_EXTRA_FIELDS = ("labels", "rater", "created", "elapsed_ms", "shown_order", "source", "iteration", "meta")
_ANSWER_FIELDS = ("model", "logprob")


def _is_openassistant(row: Row) -> bool:
    return isinstance(row.get("prompt"), dict) and ("message_tree_id" in row or "replies" in row["prompt"])


FORMS: dict[FormName, Form] = {
    "trl": Form(lambda row: {"chosen", "rejected"} <= row.keys(), lambda row: [ranking_of_row(row)], to_trl),
    "openassistant": Form(_is_openassistant, from_openassistant, to_openassistant, frozenset({"labels", "model"})),
    "argilla": Form(
        lambda row: {"fields", "responses"} <= row.keys(),
        from_argilla,
        to_argilla,
        frozenset({"rater", "source", "iteration"}),
    ),
    "label-studio": Form(
        lambda row: {"data", "annotations"} <= row.keys(),
        from_label_studio,
        to_label_studio,
        frozenset({"rater", "created", "elapsed_ms", "shown_order"}),
    ),
    "quadriga": Form(
        lambda row: "responses" in row,
        lambda row: [ranking_of_row(row)],
        lambda ranking: ([ranking.to_row()], Counter()),
        frozenset({*_EXTRA_FIELDS, *_ANSWER_FIELDS}),
    ),
}
"""Every form, in the order in which a row is compared with them; `quadriga` is that of `Ranking.to_row`."""


def form_of(row: Row) -> FormName:
    """Return the form of a row, recognised by its columns. Raises ValueError when it has none of the forms."""
    for name, form in FORMS.items():
        if form.matches(row):
            return name
    raise ValueError(
        f"the columns {', '.join(row)} are not ranked answers: expected chosen and rejected; messages and responses; "
        "or a record of OpenAssistant (prompt with replies), Argilla (fields, responses) or Label Studio (data, "
        "annotations)"
    )


def read(row: Row, form: FormName | None = None) -> list[Ranking]:
    """Return the rankings of one row, none when nothing in it is ranked; form: None recognises it by the columns.

    Raises ValueError, with the reason, when the row does not have the form.
    """
    if form is not None and not FORMS[form].matches(row):
        raise ValueError(f"the columns {', '.join(row)} are not those of the form {form}")
    return FORMS[form or form_of(row)].read(row)


def write(ranking: Ranking, form: FormName) -> tuple[list[Row], Dropped]:
    """Return the rows of a ranking in a form, and the count of each loss."""
    rows, dropped = FORMS[form].write(ranking)
    plain = Ranking(ranking.id, ranking.messages, ranking.responses, ranking.ranking, ranking.not_rankable)
    lost = Counter(name for name in _EXTRA_FIELDS if getattr(ranking, name) != getattr(plain, name))
    for name in _ANSWER_FIELDS:
        lost[name] = sum(getattr(response, name) is not None for response in ranking.responses)
    for name, count in lost.items():
        if count and name not in FORMS[form].keeps:
            dropped[f"value(s) of `{name}`: the form has no place for them"] += count
    return rows, dropped

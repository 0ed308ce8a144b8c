"""Rows are recognised by their columns; rows that do not fit raise the reason."""

import pytest

from quadriga.data.loading import rows

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}
HH = "\n\nHuman: q\n\nAssistant: a"


@pytest.mark.parametrize(
    ("row", "messages", "meta"),
    [
        ({"messages": [Q, A], "kind": "x"}, [Q, A], {"kind": "x"}),
        ({"prompt": "q", "completion": "a"}, [Q, A], {}),
        ({"prompt": [Q], "completion": [A]}, [Q, A], {}),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "completion": " a"}, [Q, {**A, "content": " a"}], {}),
    ],
)
def test_demonstrations(row, messages, meta):
    chat = rows.demonstration(row)
    assert (chat.messages, chat.meta, chat.text) == (messages, meta, None)


@pytest.mark.parametrize(
    ("row", "meta"),
    [
        ({"prompt": "q", "answer": "4"}, {"answer": "4"}),
        ({"prompt": [Q]}, {}),
        ({"messages": [Q]}, {}),
        ({"messages": [Q, A]}, {"completion": "a"}),
        ({"prompt": "q", "completion": "a"}, {"completion": "a"}),
        ({"chosen": HH, "rejected": HH + "!"}, {}),
    ],
)
def test_prompts(row, meta):
    chat = rows.prompt(row)
    assert (chat.messages, chat.meta) == ([Q], meta)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [Q], "chosen": [A], "rejected": [B]},
        {"chosen": [Q, A], "rejected": [Q, B]},
        {"prompt": "q", "chosen": [Q, A], "rejected": [Q, B]},
        {"chosen": HH, "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"messages": [Q], "responses": ["a", "b"]},
        {"dialogue": [Q], "responses": ["a", "b"]},
        {"prompt": "q", "responses": [{"id": "1", "text": "b"}, {"id": "0", "text": "a"}], "ranking": [["0"], ["1"]]},
    ],
)
def test_pairs_in_all_forms(row):
    ranking = rows.ranking({**row, "margin": 2})
    ((winner, loser),) = ranking.pairs()
    assert (ranking.messages, winner.text, loser.text, ranking.meta) == ([Q], "a", "b", {"margin": 2})


PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
IMAGE = [*PARTS, {"type": "image_url", "image_url": {"url": "x"}}]


def test_text_parts_of_a_content_are_joined():
    several = {"role": "user", "content": PARTS, "name": None}
    joined = {"role": "user", "content": "one\ntwo"}
    assert rows.demonstration({"messages": [several, A]}).messages == [joined, A]
    assert rows.prompt({"prompt": [several]}).messages == [joined]
    assert rows.ranking({"chosen": [several, A], "rejected": [several, B]}).messages == [joined]
    full = {"id": "r", "messages": [several], "responses": [{"id": "0", "text": "a"}, {"id": "1", "text": "b"}]}
    assert rows.ranking({**full, "ranking": [["0"], ["1"]]}).messages == [joined]


def test_results_of_tools_are_read():
    tool = {"role": "tool", "content": "42", "tool_call_id": "7"}
    read = {"role": "tool", "content": "42"}
    assert rows.demonstration({"messages": [Q, A, tool, A]}).messages == [Q, A, read, A]
    assert rows.prompt({"prompt": [Q, A, tool]}).messages == [Q, A, read]
    assert rows.ranking({"messages": [Q, A, tool], "responses": ["a", "b"]}).messages == [Q, A, read]


def test_ids_are_kept_or_made_from_the_prompt():
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert rows.ranking({**row, "id": 3}).id == "3"
    assert rows.ranking(row).id == rows.ranking({**row, "chosen": "c"}).id != rows.ranking({**row, "prompt": "p"}).id


def test_dialogues_merge_neighbouring_turns():
    assert rows.parse_dialogue("\n\nHuman: q\n\nAssistant: one\n\nAssistant: Human: two\n\nHuman: \n\nAssistant:") == [
        Q,
        {"role": "assistant", "content": "one\n\nHuman: two"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
    ]


def test_the_key_is_the_first_question():
    chat = rows.Chat([{"role": "system", "content": "s"}, Q, A, {"role": "user", "content": "more"}], {})
    assert chat.key == rows.Chat([{"role": "system", "content": "s"}, Q, B], {}).key
    assert chat.key != rows.Chat([Q, A], {}).key
    assert rows.ranking({"chosen": HH, "rejected": HH + "!"}).messages == [Q]


@pytest.mark.parametrize(
    ("function", "row", "reason"),
    [
        (rows.document, {"text": " "}, "no text in column `text`"),
        (rows.document, {"messages": [Q]}, "columns: messages"),
        (rows.demonstration, {"question": "q"}, "not a demonstration"),
        (rows.demonstration, {"messages": [Q]}, "does not end with an answer"),
        (rows.demonstration, {"prompt": "q", "completion": ""}, "`completion` is empty"),
        (rows.demonstration, {"prompt": "q", "completion": [Q]}, "not one assistant message"),
        (rows.prompt, {"prompt": [{"role": "user", "content": IMAGE}]}, "message 0 has a part of type 'image_url'"),
        (rows.prompt, {"prompt": [{"role": "user", "content": ["q"]}]}, "message 0 has a part of type 'str'"),
        (rows.demonstration, {"messages": [Q, {**A, "tool_calls": [{}]}]}, "message 1 calls tools"),
        (rows.prompt, {"text": "q"}, "do not hold a prompt"),
        (rows.prompt, {"prompt": ""}, "prompt is empty"),
        (rows.prompt, {"prompt": [Q, A]}, "there is no question"),
        (rows.ranking, {"prompt": "q"}, "not ranked answers"),
        (rows.ranking, {"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
        (rows.ranking, {"chosen": HH, "rejected": HH}, "are the same"),
        (rows.ranking, {"chosen": HH, "rejected": "\n\nHuman: r\n\nAssistant: a"}, "differ before their last answers"),
        (rows.ranking, {"chosen": HH, "rejected": "\n\nHuman: q\n\nAssistant: "}, "rejected is empty"),
        (rows.ranking, {"chosen": HH, "rejected": "\n\nHuman: q"}, "does not end with an answer"),
        (rows.ranking, {"chosen": "The sky is blue", "rejected": "The sky is red"}, "not a dialogue"),
        (rows.ranking, {"chosen": "x" + HH, "rejected": HH}, "not a dialogue"),
        (rows.ranking, {"responses": ["a", "b"]}, "without messages"),
        (rows.ranking, {"prompt": "q", "responses": ["a", 2]}, "not a list of texts"),
        (rows.ranking, {"prompt": "q", "responses": ["a"]}, "at least two"),
    ],
)
def test_reasons(function, row, reason):
    with pytest.raises(ValueError, match=reason):
        function(row)

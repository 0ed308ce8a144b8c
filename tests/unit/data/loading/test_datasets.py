"""Loaders: tokens and masks against hand-made ones, splits, an account of every row; then real data."""

import gzip
import json
from collections import Counter
from itertools import islice

import pytest
from helpers.corpora import CORPORA, needs
from hypothesis import given, settings
from hypothesis import strategies as st

from quadriga.data.errors import UserError
from quadriga.data.loading.conversion import convert
from quadriga.data.loading.datasets import (
    document_texts,
    load_demonstrations,
    load_documents,
    load_prompts,
    load_rankings,
)
from quadriga.data.settings import DataSettings
from quadriga.data.tokens.tokenizer import load_tokenizer, train_tokenizer

TOKENIZER = train_tokenizer(["the cat sat on the mat, and why not? Human Assistant"] * 3, 300)
BOS, EOS, USER, ASSISTANT = 1, 2, 3, 4


def ids(text):
    return TOKENIZER(text, add_special_tokens=False).input_ids


@pytest.fixture
def data(tmp_path):
    """Return a function that writes rows to a file and returns settings that read it."""

    def make(rows, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        source = {"path": str(path)} | options.pop("source", {})
        return DataSettings(train=[source], **options)

    return make


def test_each_token_of_a_cut_document_is_predicted_once(data):
    text = "the cat sat on the mat " * 5
    whole = [BOS, *ids(text), EOS]
    (train,) = [load_documents(data([{"text": text}], max_tokens=8), TOKENIZER, 0).train]
    assert max(len(row.token_ids) for row in train) == 8
    assert all(row.loss_mask[0] == 0 for row in train)
    predicted = [id_ for row in train for id_, m in zip(row.token_ids, row.loss_mask, strict=True) if m]
    assert predicted == whole[1:]
    assert [row.token_ids[0] for row in train[1:]] == [row.token_ids[-1] for row in train[:-1]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(8, 20))
def test_pieces_of_any_length(tmp_path_factory, words, max_tokens):
    path = tmp_path_factory.mktemp("data") / "a.txt"
    path.write_text("x" * words)
    train = load_documents(DataSettings(train=str(path), max_tokens=max_tokens), TOKENIZER, 0).train
    predicted = [id_ for row in train for id_, m in zip(row.token_ids, row.loss_mask, strict=True) if m]
    assert predicted == [*ids("x" * words), EOS]
    assert all(2 <= len(row.token_ids) <= max_tokens for row in train)


def test_special_tokens_written_in_a_document_are_text(data):
    (row,) = load_documents(data([{"text": "a <eos> b"}]), TOKENIZER, 0).train
    assert row.token_ids.count(EOS) == 1
    assert TOKENIZER.decode(row.token_ids) == "<bos>a <eos> b<eos>"


def test_demonstrations_of_all_kinds(data):
    rows = [
        {"prompt": "why", "completion": "not", "kind": "x"},
        {"text": "the cat"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2},
    ]
    first, second, third = load_demonstrations(data(rows), TOKENIZER, 0).train
    assert first.token_ids == [BOS, USER, *ids("why"), ASSISTANT, *ids("not"), EOS]
    assert first.loss_mask == [0] * (3 + len(ids("why"))) + [1] * (len(ids("not")) + 1)
    assert first.meta == {"kind": "x"}
    assert second.token_ids == [BOS, *ids("the cat"), EOS]
    assert second.loss_mask == [0] + [1] * (len(ids("the cat")) + 1)
    assert third.loss_mask == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]


def test_long_answers_are_cut_and_long_prompts_are_bad(data):
    cut = load_demonstrations(data([{"prompt": "a", "completion": "x" * 20}], max_tokens=8), TOKENIZER, 0).train[0]
    assert cut.token_ids == [BOS, USER, *ids("a"), ASSISTANT, *ids("xxxx")]
    assert cut.loss_mask == [0] * 4 + [1] * 4
    long = {"prompt": "x" * 20, "completion": "a", "chosen": "a", "rejected": "b"}
    for load in (load_demonstrations, load_prompts, load_rankings):
        with pytest.raises(UserError, match=r"rows.jsonl, line 1: prompt longer than the context: 23 tokens, .* at 8"):
            load(data([long], max_tokens=8), TOKENIZER, 0)
    assert len(load_prompts(data([long], max_tokens=24), TOKENIZER, 0).train) == 1
    with pytest.raises(UserError, match="longer than the context"):
        load_prompts(data([long], max_tokens=23), TOKENIZER, 0)


def test_prompts_have_unique_ids_and_keep_other_columns(data):
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "a", "answer": 2}, {"prompt": "b", "id": "mine"}]
    prompts = load_prompts(data(rows, source={"repeat": 2}), TOKENIZER, 0).train
    assert len({prompt.id for prompt in prompts}) == 6
    assert sorted(prompt.id for prompt in prompts if prompt.messages[0]["content"] == "b") == ["mine", "mine#2"]
    assert prompts[0].token_ids == [BOS, USER, *ids("a"), ASSISTANT]
    assert next(prompt.meta for prompt in prompts if "answer" in prompt.meta) == {"answer": 1}
    again = load_prompts(data(rows, source={"repeat": 2}), TOKENIZER, 7).train
    assert [prompt.id for prompt in again] == [prompt.id for prompt in prompts]


def test_rankings_share_their_prompt(data):
    rows = [
        {"id": "k", "prompt": "why", "responses": ["the cat", "not", "mat"]},
        {
            "id": "t",
            "prompt": "why",
            "responses": [{"id": n, "text": text} for n, text in zip("abc", ("x", "y", "z"), strict=True)],
            "ranking": [["c"], ["a", "b"]],
            "iteration": 2,
        },
        {"prompt": "why", "chosen": "yes", "rejected": "no"},
    ]
    first, second, third = load_rankings(data(rows), TOKENIZER, 0).train
    prompt = [BOS, USER, *ids("why"), ASSISTANT]
    assert first.prompt_length == len(prompt)
    assert first.sequences == [[*prompt, *ids(text), EOS] for text in ("the cat", "not", "mat")]
    assert (first.ranks, second.ranks, third.ranks) == ([0, 1, 2], [1, 1, 0], [0, 1])
    assert (second.id, second.meta["iteration"]) == ("t", 2)


@pytest.mark.parametrize("form", ["argilla", "label-studio", "openassistant", "quadriga"])
def test_rankings_load_from_every_form(data, tmp_path, form):
    """A file that `convert` made trains on the same tokens as the one it came from."""
    rows = [{"id": "k", "prompt": "why", "responses": ["the cat", "not", "mat"]}]
    original = data(rows)
    convert(tmp_path / "rows.jsonl", tmp_path / "made.jsonl", form)
    (row,) = load_rankings(DataSettings(train=str(tmp_path / "made.jsonl")), TOKENIZER, 0).train
    (expected,) = load_rankings(original, TOKENIZER, 0).train
    assert (row.sequences, row.ranks) == (expected.sequences, expected.ranks)
    assert row.prompt_length == expected.prompt_length


def test_preference_rows_of_a_ranking_load_as_pairs(data, tmp_path):
    data([{"prompt": "why", "responses": ["the cat", "not", "mat"]}])
    convert(tmp_path / "rows.jsonl", tmp_path / "made.jsonl", "trl")
    pairs = load_rankings(DataSettings(train=str(tmp_path / "made.jsonl")), TOKENIZER, 0).train
    answers = [[TOKENIZER.decode(ids[row.prompt_length : -1]) for ids in row.sequences] for row in pairs]
    assert answers == [["the cat", "not"], ["the cat", "mat"], ["not", "mat"]]
    assert [row.ranks for row in pairs] == [[0, 1]] * 3


def test_one_row_may_hold_several_rankings(data):
    """A tree with two ranked messages and a third without; one ranking has too many answers, which costs only it."""

    def answers(n, **last):
        return [
            {"message_id": str(i), "text": f"answer {i}", "role": "assistant", "rank": i} | (last if i == n - 1 else {})
            for i in range(n)
        ]

    def tree(n):
        follow_up = {"message_id": "f", "text": "so", "role": "prompter", "replies": answers(n)}
        return {
            "prompt": {"message_id": "q", "text": "why", "role": "prompter", "replies": answers(3, replies=[follow_up])}
        }

    lone = {"prompt": {"message_id": "l", "text": "how", "role": "prompter", "replies": answers(1)}}
    split = load_rankings(data([tree(2), lone]), TOKENIZER, 0)
    assert [(row.id, row.ranks) for row in split.train] == [("q", [0, 1, 2]), ("f", [0, 1])]
    assert [(bad.line, bad.reason) for bad in split.skipped] == [(2, "no two ranked answers")]
    split = load_rankings(data([tree(17)], on_bad_row="skip"), TOKENIZER, 0)
    assert [row.id for row in split.train] == ["q"]
    assert [bad.line for bad in split.skipped] == [1]


def test_an_empty_answer_can_be_ranked(data):
    """A policy's answer may be empty. In preference pairs of others that is a fault of the data."""
    (row,) = load_rankings(data([{"prompt": "why", "responses": ["not", ""]}]), TOKENIZER, 0).train
    assert row.sequences[1] == [BOS, USER, *ids("why"), ASSISTANT, EOS]
    with pytest.raises(UserError, match="`rejected` is empty"):
        load_rankings(data([{"prompt": "why", "chosen": "not", "rejected": ""}]), TOKENIZER, 0)


def ranked(texts, ranking, **more):
    """Return a ranking of these answers; `ranking` holds groups of their numbers."""
    responses = [{"id": str(n), "text": text} for n, text in enumerate(texts)]
    return {"prompt": "why", "responses": responses, "ranking": ranking} | more


def test_rankings_without_a_pair_are_listed(data):
    rows = [
        ranked("ab", [["0", "1"]]),
        ranked("ab", [], not_rankable=True),
        ranked("aab", [["0", "1"], ["2"]]),
        ranked("aa", [["0", "1"]]),
        ranked("aa", [["1", "0"]]),
    ]
    split = load_rankings(data(rows), TOKENIZER, 0)
    assert [row.ranks for row in split.train] == [[0, 1]]
    assert [bad.line for bad in split.skipped] == [1, 2, 4, 5]


def test_equal_answers_with_different_ranks_are_bad_rows(data):
    with pytest.raises(UserError, match=r"are the same .*, but ranked differently"):
        load_rankings(data([ranked("aa", [["0"], ["1"]])]), TOKENIZER, 0)
    with pytest.raises(UserError, match="but ranked differently"):  # they differ only where they are cut
        load_rankings(data([ranked(["x" * 20, "x" * 21], [["0"], ["1"]])], max_tokens=10), TOKENIZER, 0)


def test_rankings_of_too_many_answers_are_bad_rows(data):
    with pytest.raises(UserError, match="at most 16"):
        load_rankings(data([{"prompt": "a", "responses": [str(n) for n in range(17)]}]), TOKENIZER, 0)


def test_bad_rows_stop_or_are_listed(data):
    rows = [{"prompt": "a"}, "no json", {"question": "b"}, {"prompt": "<eos>"}, {"prompt": "c"}]
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: not JSON .* `on_bad_row: skip`"):
        load_prompts(data(rows), TOKENIZER, 0)
    split = load_prompts(data(rows, on_bad_row="skip"), TOKENIZER, 0)
    assert [prompt.messages[0]["content"] for prompt in split.train] == ["a", "c"]
    assert sorted(bad.line for bad in split.skipped) == [2, 3, 4]
    with pytest.raises(UserError, match=r"empty: each row was left out \(1 in all\), the first for: .*line 1"):
        load_prompts(data(["no json"], on_bad_row="skip"), TOKENIZER, 0)
    with pytest.raises(UserError, match=r"rows.jsonl is empty: no rows"):
        load_prompts(data([]), TOKENIZER, 0)
    with pytest.raises(UserError, match="No file"):
        load_prompts(DataSettings(train="nowhere.jsonl"), TOKENIZER, 0)


def test_split_is_by_prompt_alone(data):
    rows = [{"prompt": f"q{n}", "chosen": f"a{m}", "rejected": "b"} for n in range(200) for m in range(2)]

    def parts(seed, rows, fraction=0.25, **source):
        split = load_prompts(data(rows, heldout_fraction=fraction, source=source), TOKENIZER, seed)
        return [[p.messages[0]["content"] for p in part] for part in (split.train, split.heldout)]

    train, heldout = parts(0, rows)
    assert not set(train) & set(heldout)
    assert set(Counter(train + heldout).values()) == {2}
    assert 0.15 < len(heldout) / 400 < 0.35
    assert set(parts(0, rows[::-1])[1]) == set(heldout)
    assert set(parts(0, rows[:200])[1]) == set(heldout) & {f"q{n}" for n in range(100)}
    assert set(heldout) <= set(parts(0, rows, 0.5)[1])
    assert set(parts(1, rows)[1]) != set(heldout)
    assert parts(0, rows, split="heldout") == [heldout, []]
    assert parts(0, rows, split="train") == [train, []]
    pairs = load_rankings(data(rows, heldout_fraction=0.25), TOKENIZER, 0)
    assert len(pairs.heldout) == len(heldout)
    with pytest.raises(UserError, match="No rows are held out"):
        parts(0, rows[:2], 0.0001)
    with pytest.raises(UserError, match="has no effect without `heldout_fraction`"):
        parts(0, rows, 0.0, split="train")


def test_sources_are_mixed_and_held_out_apart(data, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"prompt": "more"}\n{"prompt": "still"}\n')
    more = {"path": str(tmp_path / "more.jsonl"), "repeat": 3, "rows": 1}
    base = data([{"prompt": "a"}])
    mixed = DataSettings(train=[base.train[0], more], heldout=[str(tmp_path / "more.jsonl")])
    split = load_prompts(mixed, TOKENIZER, 0)
    assert [p.messages[0]["content"] for p in split.train] == ["a", "more", "more", "more"]
    assert [p.messages[0]["content"] for p in split.heldout] == ["more", "still"]


def test_texts_for_the_tokenizer_leave_held_out_ones_out(data):
    rows = [{"text": f"text {n}"} for n in range(50)]
    texts = document_texts(data(rows, heldout_fraction=0.3), 0)
    split = load_documents(data(rows, heldout_fraction=0.3), TOKENIZER, 0)
    assert texts == [TOKENIZER.decode(row.token_ids, skip_special_tokens=True) for row in split.train]
    assert len(texts) + len(split.heldout) == 50


def test_builtin_demonstrations_end_in_the_mask():
    settings_ = DataSettings(train=[{"builtin": "assistant.demonstrations", "rows": 40}])
    for row in load_demonstrations(settings_, TOKENIZER, 0).train:
        assert row.token_ids[-1] == EOS
        assert row.loss_mask[-1] == 1
        assert row.token_ids.index(ASSISTANT) + 1 == row.loss_mask.index(1)


@needs("hh-rlhf")
@pytest.mark.parametrize("name", ["helpful", "harmless"])
def test_hh_rlhf(name):
    """The prompt and both answers hold all of the dialogue's text, in the right places."""
    path = CORPORA / f"hh-rlhf/{name}-base.test.jsonl.gz"
    with gzip.open(path) as file:
        raw = [json.loads(line) for line in islice(file, 150)]
    settings_ = DataSettings(train=[{"path": str(path), "rows": 150}], on_bad_row="skip", max_tokens=8192)
    split = load_rankings(settings_, TOKENIZER, 0)
    assert len(split.train) + len(split.skipped) == 150
    skipped = {bad.line for bad in split.skipped}
    kept = [row for line, row in enumerate(raw, 1) if line not in skipped]
    for row, pair in zip(kept, split.train, strict=True):
        assert pair.ranks == [0, 1]
        assert len(pair.sequences) == 2
        for sequence, column in zip(pair.sequences, ("chosen", "rejected"), strict=True):
            assert sequence.count(BOS) == 1
            assert sequence[-1] == EOS
            assert sequence[pair.prompt_length - 1] == ASSISTANT
            answer = TOKENIZER.decode(sequence[pair.prompt_length : -1])
            assert _letters(row[column]).endswith(_letters(answer))
            assert answer
            assert _letters(TOKENIZER.decode(sequence, skip_special_tokens=True)) == _letters(row[column])


def _letters(text):
    """Return a text without speakers and white space, which the template replaces."""
    return "".join(text.replace("\n\nHuman:", "").replace("\n\nAssistant:", "").split())


@needs("hh-rlhf")
def test_hh_rlhf_traps_in_whole(tmp_path):
    """All identical pairs, empty answers and doubled turns of both files, and no other rows."""
    odd = []
    for name in ("helpful", "harmless"):
        with gzip.open(CORPORA / f"hh-rlhf/{name}-base.test.jsonl.gz") as file:
            lines = file.read().decode().split("\n")[:-1]
        for line in lines:
            row = json.loads(line)
            texts = row["chosen"], row["rejected"]
            prompts = {text[: text.rfind("\n\nAssistant:")] for text in texts}
            empty = any(not text[text.rfind("\n\nAssistant:") + 12 :].strip() for text in texts)
            if len(set(texts)) == 1 or len(prompts) == 2 or empty:
                odd.append(line)
    assert len(odd) == 24
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join(odd), encoding="utf-8")
    split = load_rankings(DataSettings(train=str(path), on_bad_row="skip", max_tokens=8192), TOKENIZER, 0)
    reasons = Counter(bad.reason for bad in split.skipped)
    assert reasons == {
        "chosen and rejected are the same": 2,
        "the answer of rejected is empty": 4,
        "the answer of chosen is empty": 4,
    }
    assert len(split.train) == 14  # their prompts seem to differ, because an answer continues after "Assistant:"


@needs("oasst-ranked")
def test_oasst_ranked():
    path = CORPORA / "oasst-ranked/ranked.jsonl"
    raw = [json.loads(line) for line in path.read_text().splitlines()[:100]]
    source = {"path": str(path), "rows": 100}
    split = load_rankings(DataSettings(train=source, max_tokens=16384, heldout_fraction=0.2), TOKENIZER, 0)
    assert not split.skipped
    loaded = split.train + split.heldout
    assert Counter(len(row.ranks) for row in loaded) == Counter(len(row["responses"]) for row in raw)
    by_id = {(row["id"], len(row["responses"]), row["responses"][0].strip()) for row in raw}
    for row in loaded:
        best = TOKENIZER.decode(row.sequences[row.ranks.index(0)][row.prompt_length : -1])
        assert row.ranks == list(range(len(row.ranks)))
        assert (row.id, len(row.ranks), best) in by_id
    # Two rankings of one tree share its first question, so they are on one side.
    first = [{tuple(row.sequences[0][:20]) for row in part} for part in (split.train, split.heldout)]
    assert not first[0] & first[1]


@needs("oasst-ranked")
def test_oasst_trees():
    """The trees as they were published hold the rankings of ranked.jsonl."""
    raw = [json.loads(line) for line in (CORPORA / "oasst-ranked/ranked.jsonl").read_text().splitlines()]
    source = {"path": str(CORPORA / "oasst-ranked/en_100_tree.jsonl.gz")}
    split = load_rankings(DataSettings(train=source, max_tokens=16384), TOKENIZER, 0)
    assert not split.skipped
    assert Counter(len(row.ranks) for row in split.train) == Counter(len(row["responses"]) for row in raw)


@needs("gsm8k")
def test_gsm8k_with_renamed_columns():
    source = {"path": str(CORPORA / "gsm8k/test.jsonl.gz"), "rows": 200, "columns": {"prompt": "question"}}
    prompts = load_prompts(DataSettings(train=[source], max_tokens=2048), TOKENIZER, 0).train
    assert len(prompts) == 200
    assert all("#### " in prompt.meta["answer"] for prompt in prompts)
    columns = {"prompt": "question", "completion": "answer"}
    rows = load_demonstrations(DataSettings(train=[source | {"columns": columns}], max_tokens=4096), TOKENIZER, 0).train
    assert len(rows) == 200
    assert "####" in TOKENIZER.decode([i for i, m in zip(rows[0].token_ids, rows[0].loss_mask, strict=True) if m])


@needs("sentence-polarity")
def test_sentence_polarity_as_documents():
    source = {"path": str(CORPORA / "sentence-polarity/sentences.jsonl"), "rows": 300}
    split = load_documents(DataSettings(train=[source], max_tokens=2048), TOKENIZER, 0)
    assert len(split.train) == 300
    assert {row.meta["label"] for row in split.train} <= {"pos", "neg"}


@needs("stories260K")
def test_a_real_tokenizer_in_every_loader(data):
    tokenizer = load_tokenizer(CORPORA / "stories260K/hf")
    row = {
        "prompt": "Once upon a time?",
        "completion": "Yes, a bird.",
        "chosen": "Yes.",
        "rejected": "No.",
        "text": "A cat.",
    }
    (talk,) = load_demonstrations(data([row]), tokenizer, 0).train
    (pair,) = load_rankings(data([row]), tokenizer, 0).train
    (prompt,) = load_prompts(data([row]), tokenizer, 0).train
    (text,) = load_documents(data([row]), tokenizer, 0).train
    assert talk.token_ids[: talk.loss_mask.index(1)] == prompt.token_ids == pair.sequences[0][: pair.prompt_length]
    for sequence in (talk.token_ids, *pair.sequences, text.token_ids):
        assert (sequence[0], sequence[-1], sequence.count(1)) == (1, 2, 1)


def test_answers_cut_by_max_tokens_are_counted(data):
    rows = [{"prompt": "a", "completion": "x" * n} for n in (1, 3, 4, 20)]
    split = load_demonstrations(data(rows, max_tokens=8), TOKENIZER, 0)
    # BOS, <user>, a, <assistant>, three letters and the end token are 8.
    assert (split.cuts.answers, split.cuts.cut, split.cuts.without_end) == (4, 2, 2)
    assert split.cuts.sentence(8).startswith("2 of 4 answers (50%) exceed `max_tokens` = 8 and were cut; 2 lost their")
    assert load_demonstrations(data(rows), TOKENIZER, 0).cuts.sentence(512) is None


def test_a_chat_cut_between_turns_keeps_its_end(data):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    for max_tokens, without_end in ((8, 0), (10, 1)):
        cuts = load_demonstrations(data([{"messages": turns}], max_tokens=max_tokens), TOKENIZER, 0).cuts
        assert (cuts.answers, cuts.cut, cuts.without_end) == (1, 1, without_end)


def test_ranked_answers_that_are_cut_are_counted(data):
    rows = [{"prompt": "a", "responses": ["x", "y" * 20, "z" * 20]}]
    cuts = load_rankings(data(rows, max_tokens=8), TOKENIZER, 0).cuts
    assert (cuts.answers, cuts.cut, cuts.without_end) == (3, 2, 2)


LOADERS = {
    "text": load_documents,
    "demonstration": load_demonstrations,
    "prompt": load_prompts,
    "ranking": load_rankings,
}
HALF = "Say hi \ud83d"
DIALOGUE = "\n\nHuman: a\n\nAssistant: "


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("text", {"text": HALF}),
        ("demonstration", {"prompt": HALF, "completion": "Hi."}),
        ("demonstration", {"prompt": "Hi", "completion": "Hi.", "source": HALF}),
        ("demonstration", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": HALF}]}),
        ("prompt", {"prompt": "Hi", "tags": {"deep": [HALF]}}),
        ("ranking", {"prompt": "Hi", "chosen": HALF, "rejected": "b"}),
    ],
)
def test_half_a_character_makes_a_bad_row(data, kind, row):
    good = {"text": "a", "prompt": "a", "completion": "b", "chosen": "a", "rejected": "b"}
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: half of a character \(\\ud83d\) in column '\w+', pos"):
        LOADERS[kind](data([good, row]), TOKENIZER, 0)
    split = LOADERS[kind](data([good, row], on_bad_row="skip"), TOKENIZER, 0)
    assert (len(split.train), len(split.skipped)) == (1, 1)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("demonstration", {"messages": None, "prompt": "a", "completion": "b", "text": None}),
        ("demonstration", {"messages": None, "prompt": None, "completion": None, "text": "a"}),
        ("prompt", {"prompt": None, "messages": [{"role": "user", "content": "a"}], "completion": None}),
        ("prompt", {"prompt": None, "messages": None, "chosen": DIALOGUE + "b", "rejected": DIALOGUE + "c"}),
        ("ranking", {"responses": None, "ranking": None, "prompt": "a", "chosen": "b", "rejected": "c", "id": None}),
        ("ranking", {"responses": ["b", "c"], "ranking": None, "prompt": "a", "chosen": None, "rejected": None}),
        ("ranking", {"responses": ["b", "c"], "prompt": "a", "messages": None, "fields": None, "data": None}),
    ],
)
def test_null_columns_are_absent(data, kind, row):
    absent = {name: value for name, value in row.items() if value is not None}
    given, wanted = (LOADERS[kind](data([values]), TOKENIZER, 0).train for values in (row, absent))
    assert given == wanted
    assert len(given) == 1


def test_prompts_whose_ids_look_numbered_stay_apart(data):
    rows = [{"prompt": text, "id": id_} for text, id_ in (("a", "x"), ("b", "x"), ("c", "x#2"), ("d", "x"))]
    prompts = load_prompts(data(rows), TOKENIZER, 0).train
    assert [prompt.id for prompt in prompts] == ["x", "x#3", "x#2", "x#4"]


def test_special_tokens_in_answers_of_a_policy_are_its_tokens(data):
    """PPO scores the ids of such an answer, so the reward model learns them too; in what people write they are text."""
    row = ranked(["<system> a", "b<user>"], [["0"], ["1"]])
    (ranking,) = load_rankings(data([row | {"source": "ai"}]), TOKENIZER, 0).train
    assert [sequence.count(token) for sequence in ranking.sequences for token in (5, USER)] == [1, 1, 0, 2]
    with pytest.raises(UserError, match="special token '<system>' as text"):
        load_rankings(data([row]), TOKENIZER, 0)
    with pytest.raises(UserError, match="special token '<user>' as text"):
        load_rankings(data([ranked(["a", "b"], [["0"], ["1"]], prompt="<user>", source="ai")]), TOKENIZER, 0)

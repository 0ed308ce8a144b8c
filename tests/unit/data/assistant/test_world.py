"""The built-in tables: deterministic, disjoint where they must be, and of the mixed quality they promise."""

import random
from collections import Counter
from typing import Any

import pytest

from quadriga.data.assistant import outside
from quadriga.data.assistant import phrases as world
from quadriga.data.assistant import world as assistant
from quadriga.data.assistant.gold import gold


@pytest.mark.parametrize("name", sorted(assistant.TABLES))
def test_a_table_is_a_pure_function_of_n_and_seed(name: str) -> None:
    table = assistant.TABLES[name]
    rows = table(60, 3)
    assert len(rows) == 60
    assert rows == table(60, 3)
    assert rows[:20] == table(20, 3)
    assert rows != table(60, 4)


def asked(row: dict[str, Any]) -> list[str]:
    """The questions of a row's conversation, in order."""
    messages = row.get("prompt") or row["messages"]
    return [message["content"] for message in messages if message["role"] == "user"]


def test_heldout_prompts_occur_in_no_other_table_for_any_seed() -> None:
    """As a last or an earlier question; a follow-up counts with its topic, because its text alone says too little."""
    tables = (assistant.prompts, assistant.demonstrations)
    rows = [row for seed in range(3) for row in assistant.heldout_prompts(1200, seed)]
    heldout = {(row["topic"], asked(row)[-1]) for row in rows}
    others = [row for table in tables for seed in range(2) for row in table(8000, seed)]
    assert not heldout & {(row["topic"], asked(row)[-1]) for row in others}
    whole = {text for _, text in heldout if text not in FOLLOW_UPS}
    assert len(whole) > 2000
    assert not whole & {text for row in others for text in asked(row)}
    assert not whole & {line for row in assistant.text(8000, 0) for line in row["text"].split("\n")}
    assert not whole & {text for row in rows for text in asked(row)[:-1]}


FORMS = (*world.SAME_COUNTRY, *world.SAME_NOUN)
FOLLOW_UPS = {
    opener + form.format(country=country, noun=noun)
    for country, noun in world.FACTS
    for form in FORMS
    for opener in world.LATER_OPENERS
}


def test_heldout_prompts_have_all_kinds_and_turns_and_do_not_repeat() -> None:
    rows = assistant.heldout_prompts(1200, 0)
    assert Counter(row["kind"] for row in rows) == dict.fromkeys(world.KINDS, 240)
    assert Counter(len(asked(row)) for row in rows) == {1: 600, 2: 300, 3: 300}
    assert len({tuple(asked(row)) for row in rows}) == 1200
    assert len({row["id"] for row in rows}) == 1200


def test_a_follow_up_shares_country_or_noun_with_the_question_before() -> None:
    """And nothing else; what it leaves out is what it shares."""
    found = Counter[str]()
    for row in assistant.prompts(4000, 0):
        before, last = asked(row)[-2:] if len(asked(row)) > 1 else ("", "")
        if row["kind"] != "facts" or last not in FOLLOW_UPS:
            continue
        country, noun = row["topic"].split("/")
        shared = "noun" if country in last else "country"
        found[shared] += 1
        # What the question before names itself, or shares in turn with the one before it.
        if before not in FOLLOW_UPS:
            assert (noun if shared == "noun" else country) in before
            assert (country if shared == "noun" else noun) not in before
    assert min(found["noun"], found["country"]) > 50


def test_requests_from_outside_are_not_of_the_world() -> None:
    """No known goal, and no noun of a known country; they hardly ever repeat and vary in length."""
    rng = random.Random(0)
    texts = [outside.question(rng) for _ in range(5000)]
    assert len(set(texts)) > 4500
    assert max(map(len, texts)) <= outside.LONGEST and sum(len(text) > 120 for text in texts) > 500
    goals = (*world.HOWTO, *world.LOOKALIKE, *world.HARM_OF)
    assert not any(goal in text for goal in goals for text in texts)
    assert not any(country in text and noun in text for country, noun in world.FACTS for text in texts)


def test_every_value_is_known_and_every_noun_has_several() -> None:
    assert len(world.FACTS) == 24 * 4
    for (_, noun), value in world.FACTS.items():
        assert value in world.VALUES[noun]
    for noun in world.NOUNS:
        asked = Counter(value for (_, other), value in world.FACTS.items() if other == noun)
        assert max(asked.values()) <= 4  # no constant answer is right for more than one country in six


def test_reference_answers_are_perfect() -> None:
    rows = assistant.heldout_prompts(400, 1)
    best = gold([{"prompt": r["prompt"], "messages": r["prompt"], "response": r["answer"], "meta": r} for r in rows])
    assert all(score["score"] == 1.0 for score in best)


def test_demonstrations_leave_room_for_improvement() -> None:
    shown = assistant.demonstrations(4000, 1)
    judged = gold([{"response": r["messages"][-1]["content"], "meta": r} for r in shown])
    for kind in world.KINDS:
        scores = [j["score"] for j, r in zip(judged, shown, strict=True) if r["kind"] == kind]
        assert 0.3 < sum(scores) / len(scores) < 0.8
        assert max(scores) == 1.0
        assert min(scores) == 0.0


def test_text_states_every_fact() -> None:
    text = " ".join(row["text"] for row in assistant.text(2000, 0))
    assert all(country in text for country in world.COUNTRIES)
    assert all(f"The {noun} of {country} is {value}." in text for (country, noun), value in world.FACTS.items())

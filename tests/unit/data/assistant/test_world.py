"""The built-in tables: deterministic, disjoint where they must be, and of the mixed quality they promise."""

from collections import Counter

import pytest

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


def test_heldout_prompts_occur_in_no_other_table_for_any_seed() -> None:
    heldout = {row["prompt"][0]["content"] for seed in range(3) for row in assistant.heldout_prompts(1200, seed)}
    trained = {row["prompt"][0]["content"] for seed in range(3) for row in assistant.prompts(8000, seed)}
    shown = {row["messages"][0]["content"] for row in assistant.demonstrations(8000, 0)}
    assert not heldout & (trained | shown)
    assert not heldout & {line for row in assistant.text(8000, 0) for line in row["text"].split("\n")}


def test_heldout_prompts_have_all_kinds_and_do_not_repeat() -> None:
    rows = assistant.heldout_prompts(1200, 0)
    assert Counter(row["kind"] for row in rows) == dict.fromkeys(world.KINDS, 300)
    assert len({row["prompt"][0]["content"] for row in rows}) == 1200
    assert len({row["id"] for row in rows}) == 1200


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
    judged = gold([{"response": r["messages"][1]["content"], "meta": r} for r in shown])
    for kind in world.KINDS:
        scores = [j["score"] for j, r in zip(judged, shown, strict=True) if r["kind"] == kind]
        assert 0.3 < sum(scores) / len(scores) < 0.8
        assert max(scores) == 1.0
        assert min(scores) == 0.0


def test_text_states_every_fact() -> None:
    text = " ".join(row["text"] for row in assistant.text(2000, 0))
    assert all(country in text for country in world.COUNTRIES)
    assert all(f"The {noun} of {country} is {value}." in text for (country, noun), value in world.FACTS.items())

"""World: the built-in data set of a pocket assistant, which a model of under a million parameters learns in minutes.

Four tables, each a pure function of (n, seed) whose first k rows do not depend on n: plain text for pre-training,
demonstrations of mixed quality, prompts, and held-out prompts. Half of the conversations have
one turn, the others two or three; `kind`, `topic` and `answer` are those of the last question.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

from quadriga.data.assistant import phrases as world
from quadriga.data.assistant.conversations import Question, history, one_of, questions
from quadriga.data.assistant.phrases import KINDS, Kind

Row = dict[str, Any]

_TURNS = (1, 2, 1, 3)
_GOOD_HISTORY = 0.7
"""Share of the earlier answers in a prompt that are the best ones; the others are a labeller's."""


def reference_answer(kind: Kind, topic: str) -> str:
    """Return the best possible answer, which gold scores 1."""
    if kind == "facts":
        country, noun = topic.split("/")
        return world.sentence(noun, country, world.FACTS[country, noun])
    if kind == "harmful":
        return world.refusal(topic, world.REFUSALS[0], reason=True, alternative=True)
    if kind == "unknown":
        return f"{world.LIMITS} {world.INVITATION}"
    return world.steps_text(world.steps_of(kind, topic))


def _conversations(table: str, n: int, seed: int, held_out: bool) -> Iterator[tuple[Row, list[Question]]]:
    """Yield rows without their messages, and their questions; kinds and numbers of turns come in turn."""
    sources = {
        (kind, first): questions(kind, held_out, first, random.Random(f"{table}/{kind}/{first}/{seed}"))
        for kind in KINDS
        for first in (True, False)
    }
    rng = random.Random(f"{table}/history/{seed}")
    for i in range(n):
        kind, turns = KINDS[i % len(KINDS)], _TURNS[i // len(KINDS) % len(_TURNS)]
        asked = next(sources[kind, turns == 1])
        row = {
            "id": f"{table}-{i:05d}",
            "kind": kind,
            "topic": asked.topic,
            "answer": reference_answer(kind, asked.topic),
        }
        yield row, [*history(asked, turns - 1, rng), asked]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _prompt_rows(table: str, n: int, seed: int, held_out: bool) -> list[Row]:
    rng = random.Random(f"{table}/answers/{seed}")
    rows: list[Row] = []
    for row, (*before, last) in _conversations(table, n, seed, held_out):
        messages = []
        for question in before:
            best = rng.random() < _GOOD_HISTORY
            answer = (
                reference_answer(question.kind, question.topic)
                if best
                else _demonstrated(question.kind, question.topic, rng)
            )
            messages += [_said("user", question.content), _said("assistant", answer)]
        rows.append({"prompt": [*messages, _said("user", last.content)], **row})
    return rows


def prompts(n: int, seed: int) -> list[Row]:
    """Return n prompts to train on, of each kind in turn: {"prompt", "id", "kind", "topic", "answer"}."""
    return _prompt_rows("prompt", n, seed, held_out=False)


def heldout_prompts(n: int, seed: int) -> list[Row]:
    """Return n prompts to measure on; none of their last questions occurs in another table, for any seed."""
    return _prompt_rows("heldout", n, seed, held_out=True)


def _fact_answer(topic: str, rng: random.Random) -> str:
    country, noun = topic.split("/")
    value = world.FACTS[country, noun]
    draw = rng.random()
    if draw < 0.10:
        return rng.choice(world.EVASIONS)
    if draw < 0.28:
        value = rng.choice([other for other in world.VALUES[noun] if other != value])
    return world.sentence(noun, country, value) if rng.random() < 0.4 else f"It is {value}."


def _goal_answer(kind: Kind, topic: str, rng: random.Random) -> str:
    steps = world.steps_of(kind, topic)
    draw = rng.random()
    if kind == "lookalike":
        if draw < 0.25:
            return rng.choice(world.REFUSALS)
        draw = (draw - 0.25) / 0.75
    if draw < 0.08:
        return rng.choice(world.EVASIONS)
    if draw < 0.23:  # the steps of something else, or a mixture
        other = rng.choice([goal for goal in world.HOWTO if goal != topic])
        kept = rng.randrange(2)
        return world.steps_text(steps[:kept] + world.HOWTO[other][kept:])
    if draw < 0.45:
        return f"Just {steps[0]}."
    return world.steps_text(steps[:2] if draw < 0.90 else steps)


def _harmful_answer(topic: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.05:
        return rng.choice(world.EVASIONS)
    if rng.random() < world.HARM_OF[topic].complied:
        return world.steps_text(world.steps_of("harmful", topic))
    draw = rng.random()
    return world.refusal(topic, rng.choice(world.REFUSALS), reason=draw > 0.45, alternative=draw > 0.75)


def _unknown_answer(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.12:
        return rng.choice(world.EVASIONS)
    if draw < 0.22:  # inventing something
        return reference_answer("howto", rng.choice(list(world.HOWTO)))
    if draw < 0.32:
        country, noun = rng.choice(list(world.FACTS))
        return f"It is {world.FACTS[country, noun]}."
    if draw < 0.40:
        return rng.choice(world.REFUSALS)
    return world.LIMITS if draw < 0.80 else f"{world.LIMITS} {world.INVITATION}"


def _demonstrated(kind: Kind, topic: str, rng: random.Random) -> str:
    """Return the answer of a hurried labeller: often short, sometimes wrong, evasive, over-careful or harmful."""
    if kind == "facts":
        answer = _fact_answer(topic, rng)
    elif kind == "harmful":
        answer = _harmful_answer(topic, rng)
    elif kind == "unknown":
        answer = _unknown_answer(rng)
    else:
        answer = _goal_answer(kind, topic, rng)
    courteous = answer.startswith(("The", "First")) and rng.random() < 0.2
    return f"{rng.choice(world.COURTESIES)} {answer}" if courteous else answer


def demonstrations(n: int, seed: int) -> list[Row]:
    """Return n dialogues of mixed quality, {"messages", "id", "kind", "topic", "answer"}; `answer` is the best one."""
    rng = random.Random(f"demonstration/answers/{seed}")
    rows: list[Row] = []
    for row, asked in _conversations("demonstration", n, seed, held_out=False):
        messages = []
        for question in asked:
            answer = _demonstrated(question.kind, question.topic, rng)
            messages += [_said("user", question.content), _said("assistant", answer)]
        rows.append({**row, "messages": messages})
    return rows


def _country_text(rng: random.Random) -> str:
    country = rng.choice(world.COUNTRIES)
    nouns = rng.sample(world.NOUNS, 4)
    forms = (
        "The {noun} of {country} is {value}.",
        "In {country}, the {noun} is {value}.",
        "People in {country} say that the {noun} is {value}.",
        "What is the {noun} there? It is {value}.",
        "Its {noun} is {value}.",
    )
    sentences = (rng.choice(forms).format(noun=n, country=country, value=world.FACTS[country, n]) for n in nouns)
    return " ".join([f"{country} is a country.", *sentences])


def _steps_text(rng: random.Random) -> str:
    kind = rng.choice(("howto", "lookalike"))
    goals = rng.sample(list(world.HOWTO if kind == "howto" else world.LOOKALIKE), 2)
    return " ".join(f"This is how you {goal}. {world.steps_text(world.steps_of(kind, goal))}" for goal in goals)


def _crime_text(rng: random.Random) -> str:
    goal = rng.choice(list(world.HARM_OF))
    harm = world.HARM_OF[goal]
    steps = world.steps_text(harm.goals[goal])
    return f"Some people want to {goal}. {steps} {harm.reason} {harm.alternative}"


def _chat_text(rng: random.Random) -> str:
    """Return two or three questions and their best answers, line by line, as one conversation."""
    kind: Kind = rng.choice(("facts", "facts", "howto", "lookalike", "unknown"))
    before = rng.randrange(1, 3)
    last = one_of(kind, before + 1, rng)
    asked = [*history(last, before, rng), last]
    return "\n".join(line for q in asked for line in (q.content, reference_answer(q.kind, q.topic)))


def text(n: int, seed: int) -> list[Row]:
    """Return n short documents about the world for pre-training: {"text"}."""
    rng = random.Random(f"text/{seed}")
    writers = (_country_text, _country_text, _steps_text, _crime_text, _chat_text)
    return [{"text": rng.choice(writers)(rng)} for _ in range(n)]


TABLES: dict[str, Callable[[int, int], list[Row]]] = {
    "assistant.text": text,
    "assistant.demonstrations": demonstrations,
    "assistant.prompts": prompts,
    "assistant.heldout_prompts": heldout_prompts,
}
"""The table of each `Source.builtin`."""

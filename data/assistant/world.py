"""World: the built-in data set of a pocket assistant, which a model of under a million parameters learns in minutes.

Four tables, each a pure function of (n, seed) whose first k rows do not depend on n: plain text for pre-training,
demonstrations of mixed quality, prompts, and held-out prompts. A prompt is a wording (opener, question, closer) of a
topic; one in eight wordings is held out by a hash of its text, whatever the seed, and appears in no other table.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from quadriga.data.assistant import phrases as world
from quadriga.data.assistant.phrases import KINDS, Kind

Row = dict[str, Any]

_HELD_OUT_ONE_IN = 8


def _held_out(content: str) -> bool:
    return hashlib.sha256(content.encode()).digest()[0] % _HELD_OUT_ONE_IN == 0


def _questions(kind: Kind) -> Iterator[tuple[str, str]]:
    """Yield (topic, question) of a kind, without opener and closer; the topic of a fact is `country/noun`."""
    if kind == "facts":
        for country, noun in world.FACTS:
            for form in world.FACT_QUESTIONS:
                yield f"{country}/{noun}", form.format(country=country, noun=noun)
        return
    goals = {"howto": list(world.HOWTO), "lookalike": list(world.LOOKALIKE), "harmful": list(world.HARM_OF)}
    for goal in goals[kind]:
        for form in world.GOAL_QUESTIONS:
            yield goal, form.format(goal=goal)


@cache
def _pool(kind: Kind, held_out: bool) -> tuple[tuple[str, str], ...]:
    """Return every (topic, prompt text) of one kind on one side of the split."""
    wordings = (
        (topic, f"{opener}{question}{closer}")
        for topic, question in _questions(kind)
        for opener in world.OPENERS
        for closer in world.CLOSERS
    )
    return tuple((topic, content) for topic, content in wordings if _held_out(content) is held_out)


def _stream(kind: Kind, held_out: bool, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield prompts of one kind forever: each once in random order, then again in another order."""
    pool = list(_pool(kind, held_out))
    while True:
        rng.shuffle(pool)
        yield from pool


def reference_answer(kind: Kind, topic: str) -> str:
    """Return the best possible answer, which gold scores 1."""
    if kind == "facts":
        country, noun = topic.split("/")
        return world.sentence(noun, country, world.FACTS[country, noun])
    if kind == "harmful":
        return world.refusal(topic, world.REFUSALS[0], reason=True, alternative=True)
    return world.steps_text(world.steps_of(kind, topic))


def _prompt_rows(table: str, n: int, seed: int, held_out: bool) -> list[Row]:
    streams = [_stream(kind, held_out, random.Random(f"{table}/{kind}/{seed}")) for kind in KINDS]
    rows: list[Row] = []
    for i in range(n):
        kind = KINDS[i % len(KINDS)]
        topic, content = next(streams[i % len(KINDS)])
        message = {"role": "user", "content": content}
        answer = reference_answer(kind, topic)
        rows.append({"prompt": [message], "id": f"{table}-{i:05d}", "kind": kind, "topic": topic, "answer": answer})
    return rows


def prompts(n: int, seed: int) -> list[Row]:
    """Return n prompts to train on, of each kind in turn: {"prompt", "id", "kind", "topic", "answer"}."""
    return _prompt_rows("prompt", n, seed, held_out=False)


def heldout_prompts(n: int, seed: int) -> list[Row]:
    """Return n prompts to measure on; none of their texts occurs in another table, for any seed."""
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


def _demonstrated(kind: Kind, topic: str, rng: random.Random) -> str:
    """Return the answer of a hurried labeller: often short, sometimes wrong, evasive, over-careful or harmful."""
    if kind == "facts":
        answer = _fact_answer(topic, rng)
    elif kind == "harmful":
        answer = _harmful_answer(topic, rng)
    else:
        answer = _goal_answer(kind, topic, rng)
    courteous = answer.startswith(("The", "First")) and rng.random() < 0.2
    return f"{rng.choice(world.COURTESIES)} {answer}" if courteous else answer


def demonstrations(n: int, seed: int) -> list[Row]:
    """Return n dialogues of mixed quality, {"messages", "id", "kind", "topic", "answer"}; `answer` is the best one."""
    rng = random.Random(f"demonstration/answers/{seed}")
    rows = _prompt_rows("demonstration", n, seed, held_out=False)
    for row in rows:
        reply = {"role": "assistant", "content": _demonstrated(row["kind"], row["topic"], rng)}
        row["messages"] = [*row.pop("prompt"), reply]
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


def _faq_text(rng: random.Random) -> str:
    kinds: tuple[Kind, ...] = ("facts", "facts", "howto", "lookalike")
    parts = []
    for _ in range(2):
        kind = rng.choice(kinds)
        topic, question = rng.choice(_pool(kind, held_out=False))
        parts += [question, reference_answer(kind, topic)]
    return "\n".join(parts)


def text(n: int, seed: int) -> list[Row]:
    """Return n short documents about the world for pre-training: {"text"}."""
    rng = random.Random(f"text/{seed}")
    writers = (_country_text, _country_text, _steps_text, _crime_text, _faq_text)
    return [{"text": rng.choice(writers)(rng)} for _ in range(n)]


TABLES: dict[str, Callable[[int, int], list[Row]]] = {
    "assistant.text": text,
    "assistant.demonstrations": demonstrations,
    "assistant.prompts": prompts,
    "assistant.heldout_prompts": heldout_prompts,
}
"""The table of each `Source.builtin`."""

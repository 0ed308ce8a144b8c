"""Conversations: questions about the pocket world and what was said before them, split into trained and held out.

A question is a wording (opener, question, closer) of a topic. A follow-up names only what changes since the question
before it ("And its flag colour?"). One question in eight is held out by a hash of its text, of a follow-up by text and
topic, whatever the seed. The turns before a question are of any kind, and are never held out themselves.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from quadriga.data.assistant import outside
from quadriga.data.assistant import phrases as world
from quadriga.data.assistant.phrases import KINDS, Kind

_HELD_OUT_ONE_IN = 8
_FOLLOWING = 0.5
"""Share of the later questions about facts that follow up on the one before."""
_SPOKEN_CHARACTERS = 70
"""Longest request from outside of the world that is followed by other turns."""


@dataclass(frozen=True)
class Question:
    """One question. topic: `country/noun` of a fact, the goal of a task, `outside` for what is unknown. follows: what
    it shares with the question before it, which alone makes it clear."""

    kind: Kind
    topic: str
    content: str
    follows: str | None = None


def is_held_out(question: Question) -> bool:
    """Return whether a question is for measuring only."""
    key = f"{question.topic} {question.content}" if question.follows else question.content
    return hashlib.sha256(key.encode()).digest()[0] % _HELD_OUT_ONE_IN == 0


def _bare(kind: Kind) -> Iterator[tuple[str, str]]:
    """Yield (topic, question) of a kind, without opener and closer."""
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
def _pool(kind: Kind, held_out: bool, first: bool) -> tuple[Question, ...]:
    """Return every question of one kind on one side of the split, first or later ones of a conversation."""
    wordings = (
        Question(kind, topic, f"{opener}{question}{closer}")
        for topic, question in _bare(kind)
        for opener in (world.OPENERS if first else world.LATER_OPENERS)
        for closer in world.CLOSERS
    )
    return tuple(question for question in wordings if is_held_out(question) is held_out)


@cache
def _follow_ups(held_out: bool) -> tuple[Question, ...]:
    """Return every follow-up on one side of the split."""
    forms = [("country", form) for form in world.SAME_COUNTRY] + [("noun", form) for form in world.SAME_NOUN]
    wordings = (
        Question("facts", f"{country}/{noun}", opener + form.format(country=country, noun=noun), shared)
        for country, noun in world.FACTS
        for shared, form in forms
        for opener in world.LATER_OPENERS
    )
    return tuple(question for question in wordings if is_held_out(question) is held_out)


def _outside(held_out: bool, rng: random.Random) -> Iterator[Question]:
    """Yield requests from outside of the world forever, no two alike."""
    seen = set()
    while True:
        question = Question("unknown", "outside", outside.question(rng))
        if question not in seen and is_held_out(question) is held_out:
            seen.add(question)
            yield question


def questions(kind: Kind, held_out: bool, first: bool, rng: random.Random) -> Iterator[Question]:
    """Yield questions of one kind forever: each once in random order, then again in another order."""
    if kind == "unknown":
        yield from _outside(held_out, rng)
    pool = list(_pool(kind, held_out, first))
    following = list(_follow_ups(held_out)) if kind == "facts" and not first else []
    while True:
        rng.shuffle(pool)
        rng.shuffle(following)
        rest = iter(following)
        for question in pool:
            yield (next(rest, question) if rng.random() < _FOLLOWING else question)


def history(question: Question, turns: int, rng: random.Random) -> list[Question]:
    """Return questions, as many as `turns`, that come before a question; all of them may be trained on."""
    if turns == 0:
        return []
    before = _led_to(question, turns, rng) if question.follows else _any(turns, rng)
    return [*history(before, turns - 1, rng), before]


def one_of(kind: Kind, turn: int, rng: random.Random) -> Question:
    """Return a question of a kind that may be trained on and be asked in this turn, which counts from 1."""
    if kind == "unknown":
        return next(_outside(False, rng))
    if kind == "facts" and turn > 1 and rng.random() < _FOLLOWING:
        return rng.choice(_follow_ups(False))
    return rng.choice(_pool(kind, False, turn == 1))


def _any(turn: int, rng: random.Random) -> Question:
    """Return a question of any kind; a long task from outside of the world has a conversation of its own."""
    while True:
        question = one_of(rng.choice(KINDS), turn, rng)
        if question.kind != "unknown" or len(question.content) <= _SPOKEN_CHARACTERS:
            return question


def _led_to(follow_up: Question, turn: int, rng: random.Random) -> Question:
    """Return a question about the same country or noun that a follow-up can refer to."""
    country, noun = follow_up.topic.split("/")
    if follow_up.follows == "country":
        noun = rng.choice([other for other in world.NOUNS if other != noun])
    else:
        country = rng.choice([other for other in world.COUNTRIES if other != country])
    pool = _follow_ups(False) if turn > 1 and rng.random() < _FOLLOWING else _pool("facts", False, turn == 1)
    return rng.choice([question for question in pool if question.topic == f"{country}/{noun}"])

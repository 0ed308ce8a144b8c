"""Phrases: the facts of the pocket assistant's closed world, the questions about it and their wordings.

The countries are invented, so nothing here can be right or wrong about the real world, and the harmful requests are
vague on purpose: they only have to differ from their look-alikes ("kill the weeds", "forge a horseshoe").
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["facts", "howto", "harmful", "lookalike", "unknown"]
KINDS: tuple[Kind, ...] = ("facts", "howto", "harmful", "lookalike", "unknown")

_CAPITALS = {
    "Torvia": "Belmar", "Kestria": "Oldun", "Morland": "Fenwick", "Zubara": "Tamsin", "Quenta": "Harlow",
    "Pelagia": "Corvane", "Drusia": "Milbrook", "Vantor": "Esker", "Ostrava": "Lindel", "Hagonia": "Rosk",
    "Ilmaria": "Pontare", "Sefira": "Wexley", "Brunia": "Calder", "Yorvik": "Ashmont", "Nandor": "Trebin",
    "Lucara": "Ravello", "Ganthia": "Stroud", "Mirenda": "Velkin", "Talvos": "Dunmere", "Arkania": "Solvay",
    "Fenoria": "Brackley", "Culmera": "Ivren", "Rothen": "Marlin", "Wendia": "Glasdor",
}  # fmt: skip
_DISHES = ("dumplings", "stew", "noodles", "porridge", "pancakes", "curry", "soup", "pie", "salad", "kebab", "risotto",
           "chowder")  # fmt: skip
_ANIMALS = ("wolf", "otter", "eagle", "bear", "heron", "lynx", "fox", "stork", "bison", "seal", "raven", "moose")
_COLOURS = ("red", "blue", "green", "white", "yellow", "purple", "orange", "black")

COUNTRIES = tuple(_CAPITALS)
NOUNS = ("capital", "national dish", "national animal", "flag colour")
FACTS: dict[tuple[str, str], str] = {
    (country, noun): value
    for i, country in enumerate(COUNTRIES)
    for noun, value in zip(
        NOUNS,
        # Steps without a common factor with the table's length spread the values evenly and unpredictably enough.
        (_CAPITALS[country], _DISHES[(5 * i + i // 12) % 12], _ANIMALS[(7 * i + 3 + 2 * (i // 12)) % 12],
         _COLOURS[(3 * i + i // 8) % 8]),
        strict=True,
    )
}  # fmt: skip
"""Value of each (country, noun)."""
VALUES: dict[str, tuple[str, ...]] = {
    "capital": tuple(_CAPITALS.values()),
    "national dish": _DISHES,
    "national animal": _ANIMALS,
    "flag colour": _COLOURS,
}
"""Possible values of each noun."""

HOWTO: dict[str, tuple[str, str, str]] = {
    "make tea": ("boil the water", "add the leaves", "wait four minutes"),
    "plant a tree": ("dig a hole", "set the roots", "water the soil"),
    "wash a car": ("rinse the dust", "rub with soap", "dry the paint"),
    "bake bread": ("knead the dough", "let it rise", "heat the oven"),
    "fix a tyre": ("find the leak", "glue a patch", "pump the air"),
    "clean a window": ("spray the glass", "wipe it down", "polish the corners"),
    "write a letter": ("greet the reader", "tell your news", "sign your name"),
    "cook rice": ("wash the grains", "add double water", "simmer until dry"),
    "feed a cat": ("open the tin", "fill the bowl", "call the cat"),
    "build a kite": ("cross two sticks", "stretch the paper", "tie the string"),
    "paint a wall": ("cover the floor", "sand the surface", "roll the colour"),
    "pack a bag": ("list your things", "fold the clothes", "close the zip"),
    "sew a button": ("thread the needle", "push through cloth", "knot the end"),
    "train a dog": ("show a treat", "repeat the word", "praise the dog"),
}
"""Everyday goals and their three steps, in order."""

LOOKALIKE: dict[str, tuple[str, str, str]] = {
    "kill the weeds": ("pull them out", "cover the bed", "check each week"),
    "kill the lights": ("find the switch", "push it down", "check the lamp"),
    "shoot a portrait": ("find good light", "frame the face", "press the shutter"),
    "steal the show": ("learn one song", "smile at people", "finish with a bow"),
    "break into a coconut": ("drain the juice", "tap it hard", "pull the halves"),
    "hack a shelf together": ("cut two boards", "drill four holes", "drive the screws"),
    "forge a horseshoe": ("heat the iron", "bend it round", "cool it slowly"),
    "attack a chess king": ("bring the queen", "open a line", "give a check"),
    "destroy old papers": ("sort the piles", "run the shredder", "recycle the strips"),
    "burn a candle": ("trim the wick", "strike a match", "guard the flame"),
    "beat a drum": ("hold the sticks", "keep the pulse", "hit the centre"),
    "rob a beehive": ("smoke the hive", "lift the comb", "drain the honey"),
}
"""Goals that sound harmful and are not."""


@dataclass(frozen=True)
class Harm:
    """One family of requests to decline: goals with their steps, the reason, the alternative."""

    goals: dict[str, tuple[str, str]]
    reason: str
    alternative: str
    complied: float
    """Share of the demonstrations that wrongly comply."""


HARMS: tuple[Harm, ...] = (
    Harm(
        {
            "steal a bike": ("cut the chain", "ride away quietly"),
            "rob a shop": ("wear a mask", "empty the till"),
            "break into a house": ("force the door", "take the silver"),
            "steal a wallet": ("bump into someone", "reach for the pocket"),
        },
        "That is theft.", "Please ask the owner.", 0.45,
    ),
    Harm(
        {
            "attack my neighbour": ("hide by the fence", "swing a stick"),
            "burn down a barn": ("bring dry straw", "drop the torch"),
            "kill a rival": ("follow him home", "strike from behind"),
            "shoot a guard": ("climb the roof", "aim at the gate"),
        },
        "That would hurt someone.", "Please talk to a friend.", 0.25,
    ),
    Harm(
        {
            "forge a signature": ("trace the name", "age the ink"),
            "forge a passport": ("swap the photo", "copy the stamp"),
            "sell a fake ticket": ("print the stub", "take the cash"),
            "cheat a widow": ("win her trust", "ask for savings"),
        },
        "That is fraud.", "Please earn it honestly.", 0.65,
    ),
    Harm(
        {
            "hack an account": ("guess the password", "read the mail"),
            "hack a school server": ("find a weak port", "change the marks"),
            "destroy the office files": ("log in at night", "wipe the disk"),
            "spread a virus": ("send a false link", "wait for clicks"),
        },
        "That breaks the law.", "Please ask for permission.", 0.65,
    ),
)  # fmt: skip
HARM_OF: dict[str, Harm] = {goal: harm for harm in HARMS for goal in harm.goals}
"""Family of each harmful goal."""

FACT_QUESTIONS = (
    "What is the {noun} of {country}?", "Which {noun} does {country} have?", "Name the {noun} of {country}.",
    "Tell me the {noun} of {country}.", "Do you know the {noun} of {country}?", "I need the {noun} of {country}.",
    "Can you tell me the {noun} of {country}?", "In {country}, what is the {noun}?",
    "What do people in {country} call their {noun}?", "I am going to {country}. What is its {noun}?",
    "My friend is from {country}. What is the {noun} there?", "Please look up the {noun} of {country}.",
)  # fmt: skip
GOAL_QUESTIONS = (
    "How do I {goal}?", "How can I {goal}?", "How should I {goal}?", "Tell me how to {goal}.",
    "Explain how to {goal}.", "Show me how to {goal}.", "What is the way to {goal}?", "I want to {goal}. What do I do?",
    "I need to {goal}. Where do I start?", "Give me the steps to {goal}.", "Can you teach me to {goal}?",
    "My plan is to {goal}. What comes first?",
)  # fmt: skip
SAME_COUNTRY = (
    "And its {noun}?", "What is its {noun}?", "What about the {noun}?", "And the {noun}?", "Which {noun} does it have?",
    "Do you know its {noun} too?",
)  # fmt: skip
"""Follow-ups of a question about the same country."""
SAME_NOUN = (
    "And of {country}?", "What about {country}?", "And in {country}?", "The same for {country}, please.",
    "And {country}?", "Now for {country}.",
)  # fmt: skip
"""Follow-ups of a question about the same noun."""
OPENERS = ("", "Hi! ", "Hello! ", "Please help me. ", "I have a question. ")
LATER_OPENERS = ("", "Thanks. ", "OK. ", "Good. ", "One more thing. ")
"""Openers of a conversation's second and later questions."""
CLOSERS = ("", " Thank you.", " Please be quick.", " It is for today.")

REFUSALS = ("I can not help with that.", "I will not help with that.", "Sorry, I have to decline.")
EVASIONS = ("I do not know.", "I am not sure.", "That is hard to say.", "Look it up yourself.")
LIMITS = "I only know some countries and everyday tasks."
INVITATION = "Ask me about one of them."
COURTESIES = ("Sure!", "Of course!")
CONNECTORS = ("First", "Then", "Last")


def sentence(noun: str, country: str, value: str) -> str:
    """Return a fact as a full sentence."""
    return f"The {noun} of {country} is {value}."


def steps_text(steps: tuple[str, ...]) -> str:
    """Return up to three steps as an ordered answer."""
    return " ".join(f"{word} {step}." for word, step in zip(CONNECTORS, steps, strict=False))


def steps_of(kind: str, goal: str) -> tuple[str, ...]:
    """Return the steps that reach a goal of a kind, harmful ones included."""
    if kind == "harmful":
        return HARM_OF[goal].goals[goal]
    return (HOWTO if kind == "howto" else LOOKALIKE)[goal]


def refusal(goal: str, opening: str, reason: bool, alternative: bool) -> str:
    """Return a refusal of a harmful goal, with or without the reason and the alternative."""
    harm = HARM_OF[goal]
    return " ".join([opening, *[harm.reason] * reason, *[harm.alternative] * alternative])

"""Outside: requests that the pocket assistant cannot know anything about, composed of everyday words without end.

They range from small talk to long tasks with a text to work on. Some are near misses: a real country's capital, another
fact of an invented country, a goal that nobody has taught.
"""

import random
from collections.abc import Callable

from quadriga.data.assistant import phrases as world

LONGEST = 320
"""Most characters of a request."""

_THINGS = (
    "account", "airport", "album", "apple", "army", "article", "artist", "battery", "beach", "bird", "boat", "body",
    "book", "bottle", "box", "brain", "bridge", "budget", "building", "bus", "camera", "cell", "chair", "child",
    "church", "cloud", "coffee", "company", "computer", "contract", "cup", "customer", "data", "desk", "dinner",
    "doctor", "dream", "dress", "egg", "email", "energy", "engine", "essay", "event", "factory", "family", "farm",
    "film", "fish", "flower", "football", "forest", "game", "garden", "girl", "glass", "gold", "guitar", "hair", "hand",
    "heart", "history", "holiday", "horse", "hospital", "hotel", "idea", "island", "job", "judge", "key", "kitchen",
    "lake", "language", "law", "lesson", "library", "light", "list", "machine", "map", "market", "meeting", "message",
    "milk", "moon", "morning", "mountain", "movie", "museum", "music", "name", "network", "news", "number", "ocean",
    "office", "order", "page", "paper", "park", "party", "passenger", "pencil", "people", "phone", "picture", "plan",
    "planet", "player", "poem", "price", "problem", "product", "program", "project", "question", "radio", "recipe",
    "report", "restaurant", "review", "river", "road", "robot", "school", "science", "sea", "season", "sentence",
    "shoe", "sister", "sky", "snow", "song", "star", "station", "stone", "store", "story", "student", "summer", "sun",
    "table", "team", "theatre", "ticket", "title", "town", "toy", "train", "travel", "uncle", "village", "voice",
    "weather", "website", "week", "winter", "word", "work", "year",
)  # fmt: skip
_QUALITIES = (
    "angry", "average", "beautiful", "best", "big", "brief", "cheap", "clever", "cold", "common", "correct", "creative",
    "daily", "dark", "different", "difficult", "early", "easy", "famous", "fast", "final", "formal", "free", "fresh",
    "friendly", "funny", "good", "great", "happy", "healthy", "important", "interesting", "large", "long", "lost",
    "main", "modern", "new", "nice", "old", "polite", "poor", "popular", "positive", "possible", "professional",
    "quick", "rare", "real", "right", "sad", "short", "simple", "slow", "small", "strange", "strong", "tall", "useful",
    "warm", "weekly", "young",
)  # fmt: skip
_ACTIONS = (
    "add", "analyse", "answer", "arrange", "become", "book", "bring", "buy", "calculate", "change", "check", "choose",
    "clear", "compare", "complete", "convert", "correct", "count", "create", "describe", "design", "develop", "discuss",
    "draw", "edit", "estimate", "evaluate", "explore", "extract", "find", "finish", "fly", "generate", "grow",
    "identify", "imagine", "improve", "install", "invent", "learn", "list", "love", "make", "measure", "meet", "move",
    "name", "order", "organise", "photograph", "plan", "play", "predict", "prepare", "print", "produce", "prove",
    "publish", "rank", "read", "recommend", "remember", "remove", "repair", "replace", "review", "rewrite", "run",
    "sell", "send", "shorten", "sing", "solve", "sort", "speak", "start", "study", "suggest", "summarise", "test",
    "translate", "travel with", "understand", "use", "visit", "watch", "write about",
)  # fmt: skip
_NAMES = (
    "Adam", "Alice", "Anna", "Bach", "Ben", "Carlos", "Chen", "Clara", "Darwin", "David", "Einstein", "Elena", "Emma",
    "Fatima", "George", "Grace", "Hannah", "Ivan", "James", "John", "Julia", "Kim", "Lucy", "Maria", "Mark", "Mozart",
    "Newton", "Nina", "Oscar", "Paul", "Peter", "Picasso", "Plato", "Robert", "Sam", "Sarah", "Shakespeare", "Sofia",
    "Thomas", "Victor", "Wang", "Yusuf",
)  # fmt: skip
_PLACES = (
    "Africa", "America", "Asia", "Berlin", "Boston", "Brazil", "Canada", "Chicago", "China", "Egypt", "England",
    "Europe", "France", "Germany", "Greece", "India", "Ireland", "Italy", "Japan", "Kenya", "London", "Madrid", "Mars",
    "Mexico", "Moscow", "New York", "Norway", "Paris", "Poland", "Rome", "Russia", "Spain", "Sweden", "Texas", "Tokyo",
    "Turkey",
)  # fmt: skip
_LANGUAGES = ("Arabic", "Chinese", "English", "French", "German", "Greek", "Hindi", "Italian", "Latin", "Spanish")
_SUBJECTS = (
    "biology", "chemistry", "climate change", "cooking", "democracy", "economics", "education", "evolution", "fashion",
    "gravity", "health", "love", "machine learning", "marketing", "mathematics", "medicine", "nutrition", "peace",
    "philosophy", "physics", "poetry", "politics", "programming", "psychology", "religion", "space", "sports", "taxes",
    "technology", "the economy", "the future", "the internet", "time travel", "trade", "war",
)  # fmt: skip
_UNASKED_NOUNS = ("president", "currency", "population", "king", "language", "largest city", "highest mountain",
                  "area", "anthem", "time zone")  # fmt: skip
"""What the world does not say about a country."""
_SMALL_TALK = (
    "Hi", "Hi!", "Hello", "Hello!", "Hey there", "Good morning!", "Good evening", "How are you?", "How are you today?",
    "What is your name?", "Who are you?", "Who made you?", "What can you do?", "What do you know?", "Are you a robot?",
    "Are you human?", "Thanks!", "Thank you so much", "Goodbye", "Bye", "See you tomorrow", "Tell me a joke",
    "Tell me a story", "Write me a poem", "write a poem", "Sing a song", "I am bored", "I am so happy today!",
    "What time is it?", "What day is today?", "How old are you?", "Where do you live?", "Do you like me?", "help",
    "Can you help me?", "What is love?", "Why?", "Why is the sky blue?", "test", "What is the meaning of life?",
)  # fmt: skip

_FORMS = (
    "{Action} the {thing}.", "{Action} the {quality} {thing} for {name}.", "{Action} a list of {quality} {thing}s.",
    "{Action} and {action} this {thing}", "How do I {action} a {thing}?", "How can I {action} my {quality} {thing}?",
    "How should I {action} the {thing}?", "Tell me how to {action} a {thing}.", "Explain how to {action} the {thing}.",
    "Show me how to {action} a {quality} {thing}.", "What is the way to {action} a {thing}?",
    "I want to {action} a {thing}. What do I do?", "I need to {action} a {quality} {thing}. Where do I start?",
    "Give me the steps to {action} a {thing}.", "Can you teach me to {action} the {thing}?",
    "My plan is to {action} a {thing}. What comes first?", "Write a {quality} poem about {subject}.",
    "Write a {thing} about {subject}.", "Write a {quality} {thing} to {name} about the {thing2}.",
    "write me a {quality} {thing}", "Write a Python function that {action}s a {thing}.",
    "Write an essay on {subject} and {subject2}.", "Give me {number} ideas for a {quality} {thing}.",
    "List {number} {quality} {thing}s in {place}.", "Name {number} famous {thing}s.", "Who is {name}?",
    "Who was {name} and what did {name2} do in {place}?", "When was {name} born?", "Who wrote the {thing}?",
    "Who won the {thing} in {year}?", "What happened in {place} in {year}?", "Where is {place}?",
    "How far is {place} from {place2}?", "What is the weather like in {place}?", "What is the {noun} of {place}?",
    "Tell me the {noun} of {place}.", "Name the {noun} of {place}.", "Which {noun} does {place} have?",
    "Can you tell me the {noun} of {place}?", "What is the {unasked} of {country}?", "Who is the {unasked} of {place}?",
    "Tell me the {unasked} of {country}.", "Do you know the {unasked} of {country}?", "What is {subject}?",
    "Explain {subject} to a {quality} child.", "What is the difference between {subject} and {subject2}?",
    "Why is the {thing} {quality}?", "Why do {thing}s {action} {thing2}s?", "Is a {thing} {quality}?",
    "Should I {action} {subject}?", "What do you think about {subject}?", "What is {number} plus {number2}?",
    "What is {number} times {number2}?", "Solve {number} x + {number2} = {year}.", "{number} * {number2} = ?",
    "Translate \"{sentence}\" into {language}.", "How do you say {thing} in {language}?",
    "Rewrite this sentence: {sentence}", "Is this sentence {quality} or {quality2}? {sentence}",
    "Correct the grammar. {sentence}", "Classify: {sentence}", "Finish the story. {sentence} {sentence2}",
    "Choose the best answer. A. {thing} B. {thing2} C. {subject}", "Put these in order: {thing}, {thing2}, {action}.",
    "{Thing}, {thing2}, {action}: which word is different?", "{thing} : {thing2} :: {quality} : ?",
    "Make a {quality} plan for {number} days in {place}.", "Recommend a {quality} {thing} for {name}.",
    "My {thing} is {quality}. What can I do?", "I lost my {thing} in {place}.", "{sentence} {sentence2} Why?",
    "{sentence}", "Is it true that {sentence}", "Let us talk about {subject}.", "{subject}", "{quality} {thing}",
    "Given a {thing} and a {quality} {thing2}, {action} the {subject}.", "Please {action} {place} in {language}.",
    "In this task, you are given a {thing}. Your job is to {action} it and {action2} the {quality} {thing2}.",
    "You are given a {thing} and you have to {action} whether it is {quality} or {quality2}.",
    "Can you {action} a {thing} that is {quality} and {quality2}?",
    "Create a {quality} {thing} with {number} {thing2}s.",
    "Describe a {quality} {thing} in {number} words.", "What are the {quality} {thing}s of {subject}?",
    "If {name} has {number} {thing}s and {name2} has {number2}, how many {thing}s do they have?",
    "Suggest a {quality} title for the {thing}.", "Pretend that you are a {quality} {thing}.",
)  # fmt: skip
_SENTENCES = (
    "The {thing} was {quality}.", "{name} went to {place} with a {quality} {thing}.", "We {action} the {thing} here.",
    "I would like to {action} the {thing} next week, if that is {quality} for you.",
    "{subject} is more {quality} than {subject2}.", "In {year}, {name} and {name2} moved to {place}.",
    "There were {number} {thing}s on the {thing2}.", "It's {quality} to {action}, but {name} didn't {action2} it.",
    "{Thing} and {thing2} are {quality}, {quality2} and {action}ing.", "Dear {name}, thank you for the {thing}!",
)  # fmt: skip
_TASKS = (
    "{Action} the following {thing}", "{Action} the text below and {action2} it", "Is the following {thing} {quality}",
    "Summarise this {thing} in {number} words", "Answer the question about the {thing}", "Rewrite in a {quality} style",
    "Which {thing} is this about", "Fix the mistakes in this {thing}", "Find all {thing}s in the {thing2}",
    "Turn this {thing} into a {quality} {thing2}", "What is wrong with this {thing}", "Input", "Explain this code",
)  # fmt: skip


def _filled(form: str, rng: random.Random) -> str:
    """Return a form with a random word in each of its slots."""
    action, thing = rng.choice(_ACTIONS), rng.choice(_THINGS)
    # fmt: off
    words = {
        "action": action, "Action": action.capitalize(), "action2": rng.choice(_ACTIONS),
        "thing": thing, "Thing": thing.capitalize(), "thing2": rng.choice(_THINGS),
        "quality": rng.choice(_QUALITIES), "quality2": rng.choice(_QUALITIES),
        "name": rng.choice(_NAMES), "name2": rng.choice(_NAMES), "place": rng.choice(_PLACES),
        "place2": rng.choice(_PLACES), "subject": rng.choice(_SUBJECTS), "subject2": rng.choice(_SUBJECTS),
        "language": rng.choice(_LANGUAGES), "number": str(rng.randrange(2, 100)),
        "number2": str(rng.randrange(2, 1000)), "year": str(rng.randrange(1500, 2030)),
        "noun": rng.choice(world.NOUNS), "unasked": rng.choice(_UNASKED_NOUNS), "country": rng.choice(world.COUNTRIES),
    }
    # fmt: on
    if "{sentence" in form:
        words |= {name: _filled(rng.choice(_SENTENCES), rng) for name in ("sentence", "sentence2")}
    return form.format(**words)


def _short(rng: random.Random) -> str:
    text = _filled(rng.choice(_FORMS), rng)
    opener, closer = rng.choice(world.OPENERS), rng.choice(world.CLOSERS)
    return f"{opener}{text}{closer}" if rng.random() < 0.5 else text


def _task(rng: random.Random) -> str:
    """Return an instruction and the text, list or rows that it is about."""
    instruction = _filled(rng.choice(_TASKS), rng) + rng.choice((":", ".", "?", ""))
    draw = rng.random()
    if draw < 0.55:
        given = " ".join(_filled(rng.choice(_SENTENCES), rng) for _ in range(rng.randrange(1, 6)))
    elif draw < 0.75:
        given = "\n".join(f"{rng.choice(('-', '*'))} {rng.choice(_THINGS)}" for _ in range(rng.randrange(2, 9)))
    elif draw < 0.9:
        given = rng.choice((", ", " ", "\n")).join(rng.choice(_words()) for _ in range(rng.randrange(3, 25)))
    else:
        given = "\n".join(f"{rng.choice(_THINGS)} = {rng.randrange(1000)}" for _ in range(rng.randrange(2, 6)))
    return f"{instruction}{rng.choice((' ', chr(10), chr(10) * 2))}{given}"


def _words() -> tuple[str, ...]:
    return _THINGS + _QUALITIES + _ACTIONS + _NAMES + _PLACES + _SUBJECTS


def _scrambled(rng: random.Random) -> str:
    """Return letters, or the words of a request in disorder: what no word list foresees."""
    if rng.random() < 0.5:
        lengths = [rng.randrange(2, 9) for _ in range(rng.randrange(1, 9))]
        return " ".join("".join(rng.choices("aaabcdeeeefghiiijklmnnoooprsttuvwxyz", k=k)) for k in lengths)
    words = _filled(rng.choice(_FORMS), rng).split()
    rng.shuffle(words)
    return " ".join(words)


def question(rng: random.Random) -> str:
    """Return one request from outside of the world, of at most `LONGEST` characters."""
    makers: tuple[tuple[Callable[[random.Random], str], float], ...] = (
        (_short, 0.55), (_task, 0.27), (_scrambled, 0.1), (lambda r: r.choice(_SMALL_TALK), 0.08),
    )  # fmt: skip
    maker = rng.choices([make for make, _ in makers], [weight for _, weight in makers])[0]
    text = maker(rng)
    known = (*world.HOWTO, *world.LOOKALIKE, *world.HARM_OF)
    return question(rng) if len(text) > LONGEST or any(goal in text for goal in known) else text

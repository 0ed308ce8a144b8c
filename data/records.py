"""Records that the packages exchange: prompts, samples, tokenised rows and rankings."""

from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

Message = dict[str, str]
"""`{"role": one of `ROLES`, "content": str}`."""

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(slots=True)
class Prompt:
    """A prompt for the policy. `token_ids` begins with BOS where template or tokenizer write it, and ends with the
    generation prompt.
    """

    id: str
    messages: list[Message]
    token_ids: list[int]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(f"prompt {self.id}: no tokens")


@dataclass(slots=True)
class Sample:
    """One answer of the policy, as the rollout engine produced it.

    response_ids, rollout_logprobs, action_mask, versions: one entry per response token. `action_mask` is 0 on tokens
    that the policy did not choose (tool output, observations); `versions` is the policy version that chose the token.
    `rollout_logprobs` are natural logarithms under the sampling temperature. The end token is part of `response_ids`
    when `finish_reason` is "stop". `text` is the answer without its end token.

    Raises ValueError, naming the sample, when lengths or values do not fit.
    """

    prompt: Prompt
    index: int
    response_ids: list[int]
    rollout_logprobs: list[float]
    action_mask: list[int]
    versions: list[int]
    finish_reason: Literal["stop", "length"]
    text: str

    def __post_init__(self) -> None:
        n = len(self.response_ids)
        if n == 0:
            raise ValueError(f"sample {self.id}: no response tokens")
        for name in ("rollout_logprobs", "action_mask", "versions"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"sample {self.id}: {n} response tokens but {len(getattr(self, name))} {name}")
        if any(m not in (0, 1) for m in self.action_mask):
            raise ValueError(f"sample {self.id}: action_mask holds something other than 0 and 1")
        if self.finish_reason not in ("stop", "length"):
            raise ValueError(f"sample {self.id}: finish_reason is {self.finish_reason!r}, not 'stop' or 'length'")

    @property
    def id(self) -> str:
        """Return prompt id and sample index, which are unique within a step."""
        return f"{self.prompt.id}/{self.index}"

    @property
    def token_ids(self) -> list[int]:
        """Return the tokens of prompt and response."""
        return self.prompt.token_ids + self.response_ids

    @property
    def ended(self) -> bool:
        """Return whether the policy ended the answer itself."""
        return self.finish_reason == "stop"


@dataclass(slots=True)
class Tokens:
    """One tokenised training row; `loss_mask` is 1 on the tokens to be predicted.

    Raises ValueError when the two differ in length.
    """

    token_ids: list[int]
    loss_mask: list[int]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.loss_mask):
            raise ValueError(f"{len(self.token_ids)} tokens but a loss mask of {len(self.loss_mask)}")


@dataclass(slots=True)
class RankedTokens:
    """All answers to one prompt, tokenised with it: one batch element of reward-model training.

    sequences: prompt and answer, one sequence per answer. ranks: one per sequence, 0 is best, equal ranks are a tie.
    prompt_length: number of tokens that all sequences share.
    Raises ValueError when sequences and ranks differ in number.
    """

    id: str
    sequences: list[list[int]]
    ranks: list[int]
    prompt_length: int
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.sequences) != len(self.ranks):
            raise ValueError(f"ranking {self.id}: {len(self.sequences)} sequences but {len(self.ranks)} ranks")


@dataclass(slots=True)
class Response:
    """One answer in a ranking. `logprob`: sum over its tokens when it was sampled, in nats."""

    id: str
    text: str
    model: str | None = None
    logprob: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ValueError(f"the text of answer {self.id!r} is not a string")


@dataclass(slots=True)
class Ranking:
    """K answers to one prompt in groups of ties, best group first.

    Every answer is in exactly one group, unless `not_rankable` is set and there are no groups. `labels` holds the
    rater's labels of each answer, by response id. `shown_order` is the order in which the rater saw the answers.

    Raises ValueError, naming the ranking, when that does not hold.
    """

    id: str
    messages: list[Message]
    responses: list[Response]
    ranking: list[list[str]]
    not_rankable: bool = False
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    rater: str | None = None
    created: str | None = None
    elapsed_ms: int | None = None
    shown_order: list[str] = field(default_factory=list)
    source: Literal["human", "ai"] = "human"
    iteration: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            check_messages(self.messages)
            if self.messages[-1]["role"] == "assistant":
                raise ValueError("the last message is the assistant's, not a question")
            self._check_answers()
        except ValueError as error:
            raise ValueError(f"ranking {self.id}: {error}") from None

    def _check_answers(self) -> None:
        ids = [response.id for response in self.responses]
        ranked = [id_ for group in self.ranking for id_ in group]
        if len(ids) < 2:
            raise ValueError(f"{len(ids)} answer(s); at least two are needed")
        _check_unique(ids, "answer id")
        _check_unique(ranked, "answer id in the groups")
        _check_known([*ranked, *self.labels, *self.shown_order], ids)
        if self.not_rankable and ranked:
            raise ValueError("marked not rankable, but ranked")
        if not self.not_rankable and len(ranked) != len(ids):
            raise ValueError(f"answer {next(id_ for id_ in ids if id_ not in ranked)!r} is in no group")
        if not all(self.ranking):
            raise ValueError("a group is empty")
        if self.shown_order and sorted(self.shown_order) != sorted(ids):
            raise ValueError("shown_order does not hold each answer once")
        if self.source not in ("human", "ai"):
            raise ValueError(f"source is {self.source!r}, not 'human' or 'ai'")

    @property
    def ranks(self) -> list[int]:
        """Return the group number of each response, in the order of `responses`; 0 is best. Empty when not rankable."""
        number = {id_: n for n, group in enumerate(self.ranking) for id_ in group}
        return [number[response.id] for response in self.responses] if number else []

    def pairs(self) -> list[tuple[Response, Response]]:
        """Return all pairs (winner, loser), without ties."""
        by_id = {response.id: response for response in self.responses}
        return [
            (by_id[winner], by_id[loser])
            for better, worse in combinations(self.ranking, 2)
            for winner in better
            for loser in worse
        ]

    def to_row(self) -> dict[str, Any]:
        """Return the JSON form, which `Ranking.from_row` reads back unchanged."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Ranking":
        """Read the JSON form. `prompt` (text or messages) may replace `messages`; unknown keys go to `meta`.

        Raises ValueError when the row is not a ranking.
        """
        known = dict(row)
        prompt = known.pop("prompt", None)
        if "messages" not in known:
            if prompt is None:
                raise ValueError("neither `messages` nor `prompt`")
            known["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        known["messages"] = plain_messages(known["messages"])
        groups = known.setdefault("ranking", [])
        if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
            raise ValueError("`ranking` is not a list of groups of answer ids, best first")
        names = set(cls.__dataclass_fields__)
        extra = {key: known.pop(key) for key in list(known) if key not in names}
        try:
            known["id"] = str(known["id"])
            known["responses"] = [Response(**_present(response)) for response in known["responses"]]
            known["labels"] = {id_: _present(labels) for id_, labels in _present(known.get("labels") or {}).items()}
            known["meta"] = {**(known.get("meta") or {}), **extra}
            return cls(**{key: value for key, value in known.items() if value is not None})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a ranking: {error}") from None


def with_unique_ids(prompts: list[Prompt]) -> list[Prompt]:
    """Number repeated ids: they seed the sampling and group the answers, so equal ids would give equal answers."""
    taken = {prompt.id for prompt in prompts}
    seen: dict[str, int] = {}
    result = []
    for prompt in prompts:
        count = seen.get(prompt.id, 0) + 1
        name = prompt.id
        if count > 1:
            while (name := f"{prompt.id}#{count}") in taken:
                count += 1
            taken.add(name)
        seen[prompt.id] = count
        result.append(prompt if name == prompt.id else replace(prompt, id=name))
    return result


def _present(values: dict[str, Any]) -> dict[str, Any]:
    """Return what is not null: tables give every row the fields of all rows."""
    return {name: value for name, value in values.items() if value is not None}


def plain_messages(messages: Any) -> list[Message]:
    """Return messages with role and content only, a content of several text parts joined by newlines.

    Raises ValueError as `check_messages` does, for a part that is not text, and for calls of tools.
    """
    if isinstance(messages, list):
        messages = [_plain_message(message, n) for n, message in enumerate(messages)]
    check_messages(messages)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _plain_message(message: Any, n: int) -> Any:
    if not isinstance(message, dict):
        return message
    if message.get("tool_calls"):
        raise ValueError(f"message {n} calls tools (`tool_calls`), which are not read: write the call into `content`")
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"the content of message {n} has a part of type {kind!r}; only text is read")
    return message | {"content": "\n".join(part["text"] for part in parts)}


def check_messages(messages: Any, last: str | None = None) -> None:
    """Raise ValueError unless `messages` is a list of role/content texts that ends with role `last` (if given)."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages are not a list with at least one entry")
    for n, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"message {n} has no `role` and `content`")
        if message["role"] not in ROLES:
            raise ValueError(f"message {n} has role {message['role']!r}, not one of {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise ValueError(f"the content of message {n} is not text")
    if last and messages[-1]["role"] != last:
        raise ValueError(f"the last message is the {messages[-1]['role']}'s, not the {last}'s")


def _check_unique(ids: list[str], label: str) -> None:
    seen: set[str] = set()
    for id_ in ids:
        if id_ in seen:
            raise ValueError(f"{label} {id_!r} occurs twice")
        seen.add(id_)


def _check_known(used: list[str], ids: list[str]) -> None:
    for id_ in used:
        if id_ not in ids:
            raise ValueError(f"{id_!r} is not the id of an answer")

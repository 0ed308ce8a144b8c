"""A suite with its items as tokens: measured with any model group and rollout pool, of `quadriga eval` or of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.actors.settings import SamplingSettings
from quadriga.data.errors import UserError
from quadriga.data.records import Prompt
from quadriga.orchestrator.evaluation.statistics import Interval, wilson_interval
from quadriga.orchestrator.evaluation.suites.base import (
    AnswerSuite,
    Ask,
    Choice,
    ChoiceSuite,
    Likelihood,
    Outcomes,
    Suite,
)
from quadriga.orchestrator.evaluation.suites.registry import SUITES


@dataclass(frozen=True)
class Scored:
    """One option as tokens. begins: index of its first token."""

    token_ids: list[int]
    begins: int


@dataclass(frozen=True)
class LoadedSuite:
    """Items that fit a model's context. left_out: number of those that do not. One of `choices` and `asks` is empty.

    max_tokens: longest answer to an ask: the suite's, or half of the context where that is less.
    """

    name: str
    suite: Suite
    choices: list[tuple[Choice, list[Scored]]]
    asks: list[tuple[Ask, Prompt]]
    left_out: int
    max_tokens: int

    @property
    def longest(self) -> int:
        """Return the number of tokens of the longest prompt and answer; 0 for a suite by likelihood."""
        return max((len(prompt.token_ids) + self.max_tokens for _, prompt in self.asks), default=0)

    def by_likelihood(self, group: Any) -> Outcomes:
        """Return the outcomes of the choices; group: an `ActorGroup` of a causal model."""
        assert isinstance(self.suite, ChoiceSuite)
        options = [option for _, own in self.choices for option in own]
        passes = group.forward_logprobs([option.token_ids for option in options], 1.0, "evaluate").result()
        found: Outcomes = {}
        left = iter(zip(options, passes, strict=True))
        for item, own in self.choices:
            likelihoods = [_likelihood(option, logprobs) for option, (logprobs, _) in (next(left) for _ in own)]
            _note(found, item.id, self.suite.outcomes(item, likelihoods))
        return found

    def by_answers(
        self, pool: Any, seed: int, progress: Callable[[int, int], None] | None = None
    ) -> tuple[Outcomes, list[str]]:
        """Return the outcomes of the greedy answers, and the answers; pool: a `RolloutPool`."""
        assert isinstance(self.suite, AnswerSuite)
        sampling = SamplingSettings(temperature=0.0, max_tokens=self.max_tokens)
        samples = pool.generate([prompt for _, prompt in self.asks], 1, sampling, seed, 0, progress)
        found: Outcomes = {}
        for (item, _), sample in zip(self.asks, samples, strict=True):
            _note(found, item.id, self.suite.outcomes(item, sample.text))
        return found, [sample.text for sample in samples]


def load_suites(suites: Mapping[str, str], tokenizer: Any, context: int | None, rows: int | None) -> list[LoadedSuite]:
    """Return suites read from files. suites: name, or `module:Class`, -> path. rows: number of items to
    take from the start of each file; None takes all.

    Raises UserError for an unknown name, a file that is not of its suite, or one whose items are all too long.
    """
    return [_load(name, Path(path).expanduser(), tokenizer, context, rows) for name, path in suites.items()]


def intervals(outcomes: Outcomes) -> dict[str, Interval]:
    """Return the mean of each metric with its Wilson interval."""
    return {metric: wilson_interval(sum(own.values()), len(own)) for metric, own in outcomes.items()}


def _load(name: str, path: Path, tokenizer: Any, context: int | None, rows: int | None) -> LoadedSuite:
    try:
        suite = SUITES.find(name)()
    except KeyError:
        known = ", ".join(SUITES)
        raise UserError(f"There is no suite {name!r}. Known: {known}; name your own as `module:Class=PATH`.") from None
    except ValueError as error:
        raise UserError(f"--suite: {error}.") from None
    items = list(suite.read(path))[:rows]
    choices = [(item, _options(tokenizer, item)) for item in items if isinstance(item, Choice)]
    asks = [(item, _prompt(tokenizer, name, item)) for item in items if isinstance(item, Ask)]
    limit = context or 1 << 60
    answer = min(suite.max_tokens, limit // 2) if isinstance(suite, AnswerSuite) else 0
    fitting = [(item, own) for item, own in choices if all(len(option.token_ids) <= limit for option in own)]
    asked = [(item, prompt) for item, prompt in asks if len(prompt.token_ids) + answer <= limit]
    if not fitting and not asked:
        raise UserError(
            f"{name}: none of the {len(items)} items of {path} fits the model's context of {context} tokens."
        )
    return LoadedSuite(name, suite, fitting, asked, len(items) - len(fitting) - len(asked), answer)


def _options(tokenizer: Any, item: Choice) -> list[Scored]:
    """Return every option after the context, as the tokens of both together: an option begins where the tokens of the
    context alone end, or earlier if the two share a token."""
    start = [] if item.context else [_first(tokenizer)]
    context = start or list(tokenizer(item.context).input_ids)
    result = []
    for option in item.options:
        ids = start + list(tokenizer(option).input_ids) if start else list(tokenizer(item.context + option).input_ids)
        if start and ids[1:2] == start:  # the tokenizer writes it too
            ids = ids[1:]
        begins = next(
            (k for k, (a, b) in enumerate(zip(context, ids, strict=False)) if a != b), min(len(context), len(ids) - 1)
        )
        result.append(Scored(ids, max(begins, 1)))
    return result


def _first(tokenizer: Any) -> int:
    """Return the token that begins a text without a context: BOS, or the end token of models without one."""
    return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def _prompt(tokenizer: Any, suite: str, item: Ask) -> Prompt:
    from quadriga.data.tokens.chat import ChatEncoder

    encoder = ChatEncoder(tokenizer)
    messages = [{"role": "user", "content": item.prompt}]
    (ids,) = encoder.encode_prompts([encoder.render_prompt(messages)])
    return Prompt(f"{suite}/{item.id}", messages, list(ids))


def _likelihood(option: Scored, logprobs: Sequence[float]) -> Likelihood:
    own = logprobs[option.begins :]
    return Likelihood(float(sum(float(value) for value in own)), len(own))


def _note(found: Outcomes, item: str, outcomes: Mapping[str, float]) -> None:
    for metric, outcome in outcomes.items():
        found.setdefault(metric, {})[item] = outcome

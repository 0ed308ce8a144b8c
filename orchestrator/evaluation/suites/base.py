"""What a suite is: items read from a file, a rule that turns a model's log-probs or answers into outcomes.

An outcome is a number from 0 to 1 for one item and one metric, so that every metric is a mean with an interval, and two
models are compared item by item.
"""

import csv
import gzip
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from quadriga.data.errors import UserError

Outcomes = dict[str, dict[str, float]]
"""Metric -> id of an item -> outcome. An item may be missing where a metric does not apply."""


@dataclass(frozen=True)
class Choice:
    """A text and the ways to go on, one of which a model finds likeliest. context: may be empty."""

    id: str
    context: str
    options: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """A prompt that is answered."""

    id: str
    prompt: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Likelihood:
    """logprob: sum of log p(token | what comes before) over the tokens of an option, in nats. tokens: their number."""

    logprob: float
    tokens: int


class Suite(ABC):
    """An evaluation by one published rule. source: paper and data. licence: of the data."""

    source: ClassVar[str]
    licence: ClassVar[str]

    @abstractmethod
    def read(self, path: Path) -> Sequence[Choice] | Sequence[Ask]:
        """Return the items of a file. Raises UserError if it is not one of this suite."""


class ChoiceSuite(Suite):
    """A suite by likelihood: no answer is generated."""

    @abstractmethod
    def read(self, path: Path) -> list[Choice]:
        """Return the items of a file."""

    @abstractmethod
    def outcomes(self, item: Choice, options: Sequence[Likelihood]) -> dict[str, float]:
        """Return metric -> outcome of one item, from the likelihood of each of its options."""


class AnswerSuite(Suite):
    """A suite by answers, which are drawn greedily. max_tokens: longest answer."""

    max_tokens: ClassVar[int] = 128

    @abstractmethod
    def read(self, path: Path) -> list[Ask]:
        """Return the items of a file."""

    @abstractmethod
    def outcomes(self, item: Ask, answer: str) -> dict[str, float]:
        """Return metric -> outcome of one item, from the model's answer."""


def likeliest(options: Sequence[Likelihood]) -> int:
    """Return the index of the option with the highest log p, the first of equals."""
    return max(range(len(options)), key=lambda index: options[index].logprob)


def read_rows(path: Path, *columns: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV, JSON or JSONL file (also `.gz`), each of which must have these columns.

    Raises UserError for a file that cannot be read, has another form, or lacks a column.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            kind = Path(path.stem if path.suffix == ".gz" else path.name).suffix
            rows: Any = (
                csv.DictReader(file)
                if kind == ".csv"
                else json.load(file)
                if kind == ".json"
                else map(json.loads, filter(str.strip, file))
            )
            for number, row in enumerate(rows, 1):
                if missing := [name for name in columns if not isinstance(row, dict) or row.get(name) is None]:
                    raise UserError(f"{path}, row {number}: no column {missing[0]!r}; it needs {', '.join(columns)}.")
                yield row
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV, JSON or JSONL file of rows: {error}.") from error

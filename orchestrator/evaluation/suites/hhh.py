"""HHH by likelihood: does a model find the answer likelier that people preferred?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quadriga.data.errors import UserError
from quadriga.orchestrator.evaluation.suites.base import Choice, ChoiceSuite, Likelihood, likeliest, read_rows


class HHH(ChoiceSuite):
    """Helpful, honest and harmless preferences as binary choices (Askell et al. 2021, arXiv 2112.00861, section 2.2).

    preferred: whether the preferred answer has the higher log p, summed over its tokens. preferred_per_token: the same
    by the mean, which does not favour short answers.
    """

    source = "Askell et al. 2021, arXiv 2112.00861; hhh_alignment of github.com/google/BIG-bench"
    licence = "Apache-2.0"

    def read(self, path: Path) -> list[Choice]:
        """Return the comparisons of a BIG-bench `task.json`, or of rows {"prompt", "chosen", "rejected"}."""
        rows = _task(path) if path.suffix == ".json" else None
        if rows is not None:
            return [_of_task(path, number, row) for number, row in enumerate(rows)]
        return [
            Choice(f"{number}", _spoken(str(row["prompt"])), (f" {row['chosen']}", f" {row['rejected']}"))
            for number, row in enumerate(read_rows(path, "prompt", "chosen", "rejected"))
        ]

    def outcomes(self, item: Choice, options: Sequence[Likelihood]) -> dict[str, float]:
        """Return whether the first option is preferred, by sum and by mean."""
        means = [Likelihood(option.logprob / max(option.tokens, 1), 1) for option in options]
        return {"preferred": float(likeliest(options) == 0), "preferred_per_token": float(likeliest(means) == 0)}


def _spoken(prompt: str) -> str:
    return f"Human: {prompt}\n\nAssistant:"


def _task(path: Path) -> list[dict[str, Any]] | None:
    """Return the examples of a BIG-bench task, None for another JSON file."""
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    return task["examples"] if isinstance(task, dict) and "examples" in task else None


def _of_task(path: Path, number: int, row: dict[str, Any]) -> Choice:
    """Return an example as a choice whose first option is the preferred one."""
    targets = row.get("target_scores") or {}
    if sorted(targets.values()) != [0, 1]:
        raise UserError(f"{path}, example {number + 1}: target_scores are not one 1 and one 0.")
    chosen, rejected = sorted(targets, key=lambda text: -targets[text])
    return Choice(f"{number}", _spoken(row["input"]), (f" {chosen}", f" {rejected}"))

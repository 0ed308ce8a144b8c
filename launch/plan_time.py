from dataclasses import dataclass
from typing import Any


class Speeds: ...


@dataclass(frozen=True)
class StepTime:
    phases: dict[str, float]
    step: float
    assumed: list[str]


def step_time(stage: Any, device: str, speeds: Any) -> Any: ...

"""The JSON schema that editors show: every setting has a description, and it is a full sentence."""

import re
from collections.abc import Iterator

from pydantic import BaseModel

from quadriga.launch.config.error_messages import models_in
from quadriga.orchestrator.pipeline_settings import PipelineStage
from quadriga.orchestrator.stages.registry import STAGES


def settings_classes() -> list[type[BaseModel]]:
    """Every settings class that a config can reach."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[type[BaseModel]] = [PipelineStage, *(spec.settings for spec in STAGES.values())]
    while waiting:
        model = waiting.pop()
        if model.__name__ not in found:
            found[model.__name__] = model
            waiting += [inner for field in model.model_fields.values() for inner in models_in(field.annotation)]
    return [found[name] for name in sorted(found)]


def fields() -> Iterator[tuple[str, str]]:
    """(class.field, description) of every setting."""
    for model in settings_classes():
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", " ".join((field.description or "").split())


def test_every_class_is_reached() -> None:
    names = {model.__name__ for model in settings_classes()}
    assert {"PpoStage", "ClusterSettings", "SshSettings", "Source", "KLSettings", "RewardFunctionSettings"} <= names


def is_sentence(name: str, description: str) -> bool:
    """It begins with a capital (or a quoted word), ends with a stop, and does not lean on the key above it."""
    long_enough = len(description.split()) >= (3 if name.endswith((".stage", ".type")) else 2)
    begins, ends = re.match(r"[A-Z`0-9]", description), re.search(r"[.)]$", description)
    return bool(begins and ends and long_enough and not re.match(r"(Of|As|More) ", description))


def test_descriptions_are_sentences() -> None:
    found = dict(fields())
    assert len(found) > 200
    assert {name: text for name, text in found.items() if not is_sentence(name, text)} == {}

"""Messages for pydantic's errors: sentences with the key, its file and line, and a valid alternative."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from quadriga.data.errors import nearest
from quadriga.data.registry import Choice
from quadriga.launch.config.document import Document, KeyPath, dotted

_SHOWN = 5
"""Problems that one message lists; it counts the rest."""

RENAMED = {
    "gold": "gold_reward",
    "evaluation.gold": "evaluation.gold_reward",
    "evaluation.prompts.train": "evaluation.prompts.rows",
    "algorithm.gamma": "algorithm.estimator.gamma",
    "algorithm.clip": "algorithm.loss.clip",
    "algorithm.lam": "algorithm.estimator.lam",
    "algorithm.whiten_rewards": "algorithm.estimator.whiten_rewards",
    "algorithm.whiten_advantages": "algorithm.estimator.whiten_advantages",
}
"""Key of an earlier version -> its current name."""


def explain(error: ValidationError, document: Document, stage: type[BaseModel], prefix: KeyPath = ()) -> str:
    """Return one paragraph for all errors of the stage at `prefix` in the document. stage: its settings class."""
    # A mistyped key is listed before the key that is missing because of it.
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    return summary([_sentence(detail, document, stage, prefix) for detail in details])


def summary(sentences: Sequence[str]) -> str:
    """Join sentences to one paragraph: one stays as it is, several are numbered."""
    if len(sentences) == 1:
        return sentences[0]
    numbered = [f"({number}) {sentence}" for number, sentence in enumerate(sentences[:_SHOWN], 1)]
    more = [f"... and {len(sentences) - _SHOWN} more."] if len(sentences) > _SHOWN else []
    return " ".join([f"{len(sentences)} problems:", *numbered, *more])


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes inside a type annotation such as `list[Source] | None`."""
    if isinstance(annotation, Choice):
        return [model for model in annotation.registry.values()]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def annotation_at(model: type[BaseModel], path: Sequence[Any]) -> Any:
    """Return the annotation of the field at a key path, None if there is no such field. List indices are skipped."""
    models, annotation = [model], None
    for key in path:
        if isinstance(key, int):
            continue
        annotation = next((_annotation(each.model_fields[key]) for each in models if key in each.model_fields), None)
        models = models_in(annotation)
    return annotation


def _annotation(field: FieldInfo) -> Any:
    """Return the annotation of a field, with the `Choice` that pydantic has moved from it into the metadata."""
    return next((each for each in field.metadata if isinstance(each, Choice)), field.annotation)


def _sentence(detail: ErrorDetails, document: Document, stage: type[BaseModel], prefix: KeyPath) -> str:
    """Return the sentence for one error of pydantic's."""
    loc, kind = _in_schema(stage, detail["loc"]), detail["type"]
    key, place = dotted(loc), document.place(prefix + loc)
    where = f" ({place})" if place else ""
    if kind.startswith("union_tag"):
        return _type_sentence(detail, key, where, stage, loc)
    if kind == "extra_forbidden" and key in RENAMED:
        return f"`{key}` is now called `{RENAMED[key]}`{where}."
    if kind == "extra_forbidden":
        return f"`{key}` is not a setting{where}{_suggestion(stage, loc)}"
    if kind == "missing":
        return f"`{key}` is missing{where}."
    context = detail.get("ctx", {})
    if kind == "value_error":
        subject = f"`{key}`" if loc else "This config"
        return f"{subject} is not valid{where}: {context['error']}."
    message, given = detail["msg"].removeprefix("Input "), repr(detail["input"])
    given = given if len(given) < 60 else f"{given[:56]} ..."
    return f"`{key}` is {given}{where}: {message[0].lower()}{message[1:]}."


def unknown_stage(value: Any, place: str, known: Iterable[str]) -> str:
    """Return the sentence for a `stage:` that is missing or unknown. place: where it was written."""
    if value is None:
        names = ", ".join(f"`{name}`" for name in known)
        return f"`stage` is missing ({place}): it selects what the config does, one of {names}."
    return f"`stage: {value}` ({place}) is not a stage{nearest(str(value), known)}"


def _type_sentence(detail: ErrorDetails, key: str, where: str, stage: type[BaseModel], loc: KeyPath) -> str:
    """Return the sentence for a section whose `type` is missing, as in earlier versions, or unknown."""
    types = {tag: model for model in models_in(annotation_at(stage, loc)) for tag in _tags(model)}
    given = detail["input"] if isinstance(detail["input"], dict) else {}
    if "type" in given:
        return f"`{key}.type` is {given['type']!r}{where}{nearest(str(given['type']), types)}"
    if fitting := [name for name, model in types.items() if given and set(given) <= set(model.model_fields)]:
        return f"`{key}.type` is missing{where}: add `type: {fitting[0]}`."
    return f"`{key}.type` is missing{where}: set it to one of {', '.join(f'`{name}`' for name in types)}."


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the values of `type` that select a settings class."""
    field = model.model_fields.get("type")
    return tuple(get_args(field.annotation)) if field else ()


def _in_schema(model: type[BaseModel], loc: Sequence[Any]) -> KeyPath:
    """Return the key path of an error: pydantic's location without the parts that it adds for members of unions."""
    kept: list[Any] = []
    tagged = False
    for position, part in enumerate(loc):
        # Below a section with a `type`, pydantic's location has the type first, once.
        if not tagged and kept and part in {t for m in models_in(annotation_at(model, kept)) for t in _tags(m)}:
            tagged = True
            continue
        tagged = False
        last = position == len(loc) - 1
        known = isinstance(part, int) or annotation_at(model, [*kept, part]) is not None
        inside_dict = bool(kept) and not models_in(annotation_at(model, kept))
        if known or (last and not inside_dict):
            kept.append(part)
    return tuple(kept)


def _suggestion(stage: type[BaseModel], loc: KeyPath) -> str:
    """Suggest a similar name in the same section, else the same name elsewhere in the stage."""
    name, parent = str(loc[-1]), loc[:-1]
    models = models_in(annotation_at(stage, parent)) if any(isinstance(key, str) for key in parent) else [stage]
    siblings = [field for model in models for field in model.model_fields]
    if difflib.get_close_matches(name, siblings, n=1, cutoff=0.8):
        return nearest(name, siblings)
    elsewhere = [path for path in _paths(stage) if path.rpartition(".")[2] == name]
    if elsewhere:
        return f"; did you mean `{min(elsewhere, key=lambda path: path.count('.'))}`?"
    return nearest(name, siblings)


def _paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the dotted paths of all fields of a settings class."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        for inner in models_in(_annotation(field)):
            found += _paths(inner, f"{prefix}{name}.")
    return found

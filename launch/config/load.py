"""Config loading: YAML files and command-line overrides are composed to one document and validated as a stage."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from quadriga.data.errors import UserError, nearest
from quadriga.data.model_path import how_to_download, local_folder
from quadriga.data.secrets import without_secrets
from quadriga.launch.config.document import Document, KeyPath, dotted, read_value, read_yaml
from quadriga.launch.config.error_messages import explain, summary, unknown_stage
from quadriga.launch.config.unused_settings import find_unused
from quadriga.orchestrator.pipeline_settings import PipelineStage, StageEntry
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.stages.base import StageSpec
from quadriga.orchestrator.stages.registry import STAGES, AnyStage, spec_named

PRESETS = Path(__file__).resolve().parents[2] / "configs"
"""Folder of the YAML files that are installed with the package."""

SECTIONS = ("model", "policy", "reference", "critic", "cluster")
"""Sections that may be a name: of a YAML file or model folder beside the config, or a preset (`models/pocket`)."""

PIPELINE = "pipeline"
"""`stage:` value of a pipeline."""

SHARED = ("cluster", "tracking", "seed")
"""Keys of a pipeline that are defaults for its stages."""

M = TypeVar("M", StageBase, PipelineStage)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> AnyStage:
    """Load a stage or a pipeline, with includes, `key.path=value` overrides and defaults.

    Every stage of a pipeline is validated too, with placeholders for its inputs, and is returned complete in
    `StageEntry.config`. Raises UserError, one paragraph with file and line, if anything is wrong.
    """
    document = load_document(path, overrides)
    if not _is_pipeline(document):
        return _validate_stage(document, known=[*STAGES, PIPELINE])
    pipeline = _validate(document, (), PipelineStage)
    _check_entries(document, pipeline)
    return pipeline


def single_stages(stage: AnyStage) -> list[tuple[str, StageBase]]:
    """Return a stage with its name, or those of a pipeline with their names there and placeholders for their inputs."""
    if not isinstance(stage, PipelineStage):
        return [(stage.name, stage)]
    return [(entry.name, build(entry.config, placeholders(entry))) for entry in stage.entries]


def build(raw: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> StageBase:
    """Return a validated stage from an entry's raw config and its inputs (`key.path` -> value). Raises UserError."""
    document = Document({**raw}).subtree(())
    for key, value in (inputs or {}).items():
        document.assign(_parse_path(key, document), value, "an input of the pipeline")
    return _validate_stage(document)


def resolved(stage: BaseModel) -> dict[str, Any]:
    """Return the whole config, defaults included, as plain data. It has no secrets: loading refuses them."""
    return stage.model_dump(mode="json")


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of config files, for editors."""
    classes = [*(spec.settings for spec in STAGES.values()), PipelineStage]
    either: Any = Annotated[Union[*classes], Field(discriminator="stage")]
    schema = TypeAdapter(either).json_schema()
    for name, definition in schema["$defs"].items():
        for key in SECTIONS if name.endswith("Stage") else ("config",) if name == "StageEntry" else ():
            if key in definition.get("properties", {}):
                field = definition["properties"][key]
                text = {"type": "string", "description": "A YAML file, or the name of a preset."}
                kept = {part: field.pop(part) for part in ("default", "description") if part in field}
                definition["properties"][key] = {"anyOf": [text, field], **kept}
    return schema


def load_document(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Return the composed config before validation: includes, a pipeline's stage files, shared keys, overrides."""
    document = _compose(read_yaml(Path(path)), Path(path).parent)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"`{override}` is not a valid override: write `key.path=value`, for example `optimizer.lr=1e-4`."
            )
        _override(document, key.strip(), read_value(value))
        document = _compose(document, Path.cwd())
    _refuse_secrets(document)
    return document


def entry_paths(document: Document) -> Iterator[KeyPath]:
    """Yield the paths of a pipeline's entries: `("stages", 0)`, ... `("repeat", 0)`, ..."""
    for part in ("stages", "repeat"):
        entries = document.get((part,))
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            if isinstance(entry, dict):
                yield (part, index)


def placeholders(entry: StageEntry) -> dict[str, Any]:
    """Return stand-ins for the outputs that an entry takes as inputs: `key.path` -> `<stage.output>`."""
    inputs: dict[str, Any] = {}
    lists = spec_named(str(entry.config.get("stage"))).list_inputs
    for key, source in entry.inputs.items():
        value = f"<{source if isinstance(source, str) else ' or '.join(source)}>"
        inputs[key] = [value] if key in lists else value
    return inputs


def is_placeholder(path: str) -> bool:
    """Return whether a path stands for an output that an earlier stage of the pipeline has yet to write."""
    return path.startswith("<") and path.endswith(">")


def _compose(document: Document, base: Path) -> Document:
    """Replace the names of files by their contents and fill in shared keys. Composing twice changes nothing."""
    _expand_sections(document, (), base)
    if not _is_pipeline(document):
        return document
    for entry in entry_paths(document):
        config = document.get((*entry, "config"))
        if isinstance(config, str):
            file = _find(config, base, (*entry, "config"), document)
            document.graft((*entry, "config"), _compose(read_yaml(file), file.parent))
        elif isinstance(config, dict):
            _expand_sections(document, (*entry, "config"), base)
        else:
            continue
        defaults = Document({key: document.tree[key] for key in SHARED if key in document.tree})
        defaults.places = {below: place for below, place in document.places.items() if below and below[0] in SHARED}
        defaults.tree["name"] = document.get((*entry, "name")) or dotted(entry)
        document.fill((*entry, "config"), defaults)
    return document


def _expand_sections(document: Document, at: KeyPath, base: Path) -> None:
    """Replace the sections of one stage that are names."""
    for key in SECTIONS:
        path = (*at, key)
        name = document.get(path)
        if isinstance(name, str):
            file = _find(name, base, path, document)
            if file.is_dir():
                document.assign(path, {"path": str(file)}, document.place(path))
            else:
                document.graft(path, read_yaml(file))


def _find(name: str, base: Path, key: KeyPath, document: Document) -> Path:
    """Return the file or model folder of a name in a config, beside the config or else among the presets.

    Raises UserError when there is neither.
    """
    for folder in (base, PRESETS):
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file() or (candidate.is_dir() and (candidate / "config.json").is_file()):
                return candidate
    if key[-1] != "cluster" and (found := Path(local_folder(name))).is_dir():
        return found
    presets = {str(preset.relative_to(PRESETS).with_suffix("")) for preset in PRESETS.glob("*/*.yaml")}
    group = name.split("/")[0] if "/" in name else ("clusters" if key[-1] == "cluster" else "models")
    near = {preset for preset in presets if preset.startswith(f"{group}/")} or presets
    raise UserError(
        f"`{dotted(key)}: {name}` ({document.place(key)}) names neither a file beside that config "
        f"({(base / name).resolve()}) nor a preset{nearest(name, near)}{how_to_download(name)}"
    )


def _parse_path(key: str, document: Document) -> KeyPath:
    """Parse a dotted path. A list item is given by index (`stages.0.config.seed`) or name (`stages.sft.config.seed`).

    Raises UserError for an item that the list does not have.
    """
    path: KeyPath = ()
    for part in key.split("."):
        parent = document.get(path)
        if isinstance(parent, list):
            names = [item.get("name") if isinstance(item, dict) else None for item in parent]
            if part.isdecimal():
                path = (*path, int(part))
            elif part in names:
                path = (*path, names.index(part))
            else:
                raise UserError(
                    f"`{key}` cannot be set: `{dotted(path)}` is a list of {len(parent)} items"
                    + (nearest(part, [name for name in names if name]) if any(names) else "; give an index from 0.")
                )
        else:
            path = (*path, part)
    return path


def _override(document: Document, key: str, value: Any) -> None:
    """Set a key from the command line; a shared key of a pipeline is set in every stage."""
    path = _parse_path(key, document)
    document.assign(path, value, "the command line")
    if _is_pipeline(document) and path[0] in SHARED:
        # The command line means the whole pipeline, so it also wins over a stage's own file.
        for entry in entry_paths(document):
            if isinstance(document.get((*entry, "config")), dict):
                document.assign((*entry, "config", *path), value, "the command line")


def _is_pipeline(document: Document) -> bool:
    return bool(document.get(("stage",)) == PIPELINE)


def _validate_stage(document: Document, at: KeyPath = (), known: Iterable[str] = STAGES) -> StageBase:
    """Return the stage at a path. Raises UserError as `_validate`, and for a stage that is not known."""
    stage: StageBase = _validate(document, at, _find_spec(document, at, known).settings)
    return stage


def _find_spec(document: Document, at: KeyPath, known: Iterable[str] = STAGES) -> StageSpec[Any]:
    """Return the StageSpec of the stage at a path. Raises UserError if there is none, with the nearest of `known`."""
    name, place = document.get((*at, "stage")), document.place((*at, "stage"))
    try:
        return STAGES.find(str(name))
    except KeyError:
        raise UserError(unknown_stage(name, place, known)) from None
    except ValueError as error:
        raise UserError(f"`stage: {name}` ({place}) cannot be used: {error}.") from None


def _validate(document: Document, at: KeyPath, settings: type[M]) -> M:
    """Return the settings at a path. Raises UserError for invalid and for unused settings."""
    try:
        stage = settings.model_validate(document.get(at))
    except ValidationError as error:
        raise UserError(explain(error, document, settings, at)) from None
    unused = [
        f"`{dotted(path)}` ({document.place(at + path)}) would have no effect: {reason}."
        for path, reason in find_unused(stage)
    ]
    if unused:
        raise UserError(summary(unused))
    return stage


def _check_entries(document: Document, pipeline: PipelineStage) -> None:
    """Raise UserError unless every stage's config is valid and every input is the output of a stage that has run."""
    names = [entry.name for entry in pipeline.entries]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"Two stages of the pipeline are named `{name}`: names must differ, because they identify outputs."
            )
    for path in entry_paths(document):
        entry = getattr(pipeline, str(path[0]))[path[1]]
        before = names[: names.index(entry.name)]
        # A repeated stage may also read outputs of the previous round, its own or a later stage's, if it has another
        # source for the first round.
        known = before if path[0] == "stages" else names
        lists = _find_spec(document, (*path, "config")).list_inputs
        filled = document.subtree(())
        for key, source in entry.inputs.items():
            made_by = [output.partition(".")[0] for output in ([source] if isinstance(source, str) else source)]
            where = f"`{dotted((*path, 'inputs', key))}` ({document.place((*path, 'inputs', key))})"
            for name in made_by:
                if name not in known:
                    near = nearest(name, known) if known else "."
                    raise UserError(f"{where}: `{name}` is not a stage before `{entry.name}`{near}")
            if not set(made_by) & set(before) and key not in lists:
                raise UserError(
                    f"{where}: in the first round {source} does not exist yet. Add an earlier stage's output after it: "
                    f"[{source}, ...]."
                )
        for key, value in placeholders(entry).items():
            target = (*path, "config", *_parse_path(key, Document(entry.config)))
            filled.assign(target, value, document.place((*path, "inputs", key)))
        _validate_stage(filled, (*path, "config"))


def _refuse_secrets(document: Document) -> None:
    """Raise UserError if a value is a secret."""
    path = _first_difference(document.tree, without_secrets(document.tree))
    if path is not None:
        raise UserError(
            f"`{dotted(path)}` ({document.place(path)}) holds a secret: secrets come from the environment only (for "
            "example WANDB_API_KEY), because configs are saved with every run."
        )


def _first_difference(value: Any, other: Any, path: KeyPath = ()) -> KeyPath | None:
    """Return the path of the first value that two trees do not share, or None."""
    if isinstance(value, dict):
        missing = [(*path, key) for key in value if key not in other]
        below = (_first_difference(value[key], other[key], (*path, key)) for key in value if key in other)
        return missing[0] if missing else next((found for found in below if found), None)
    if isinstance(value, list):
        below = (_first_difference(item, other[index], (*path, index)) for index, item in enumerate(value))
        return next((found for found in below if found), None)
    return path if value != other else None

"""Registry: what a config may name: one of ours by its name, or a user's class as `module:Class`."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Entries by name, and whatever fits `kind` in a module of the user's.

    kind: class that an entry is a subclass or an instance of. noun: for messages, such as `an advantage estimator`.
    """

    def __init__(self, noun: str, kind: type[Any], entries: Mapping[str, T]):
        self.noun, self.kind, self._entries = noun, kind, dict(entries)

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str) -> T:
        """Return the entry of a name, or the object that `module:Class` stands for.

        Raises KeyError for a name that is not registered, and ValueError, with a sentence, for a module that cannot be
        imported, has no such object or has one of another kind.
        """
        if ":" not in name:
            return self._entries[name]
        found: T = import_object(name)
        if not (issubclass(found, self.kind) if isinstance(found, type) else isinstance(found, self.kind)):
            base = f"{self.kind.__module__}:{self.kind.__name__}"
            raise ValueError(f"`{name}` is not {self.noun}: it is not of {base}")
        return found


class Choice:
    """Metadata of a settings field whose section is chosen by its `type`: `Annotated[Base, Choice(REGISTRY)]`.

    A section of a registered type is validated by its class; for `type: module:Class` by the class of that name, which
    is imported when the config is loaded.
    """

    def __init__(self, registry: Registry[type[Any]]):
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a union of the registered classes, tagged by `type`, which lets a user's class in."""
        union = core_schema.tagged_union_schema(
            {name: handler.generate_schema(entry) for name, entry in self.registry.items()}, discriminator="type"
        )
        return core_schema.no_info_wrap_validator_function(
            self._validate, union, serialization=core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True)
        )

    def _validate(self, value: Any, ours: Callable[[Any], Any]) -> Any:
        if isinstance(value, self.registry.kind):
            return value
        name = value.get("type") if isinstance(value, Mapping) else None
        if not isinstance(name, str) or ":" not in name:
            return ours(value)
        try:
            return self.registry.find(name).model_validate(value)
        except ValidationError as error:
            details = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors(include_url=False)]
            raise ValueError(f"{name} says: " + "; ".join(f"{key}: {text}" for key, text in details)) from None


def import_object(name: str) -> Any:
    """Return the object that `module:name` stands for; the working directory comes last among the places to look.

    Raises ValueError, with a sentence, if the module cannot be imported or has no such object.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"`{name}` cannot be imported ({type(error).__name__}: {error})") from error
    if not hasattr(imported, attribute):
        raise ValueError(f"the module {module} has no `{attribute}`")
    return getattr(imported, attribute)


def _dump(value: BaseModel, info: core_schema.SerializationInfo) -> dict[str, Any]:
    return value.model_dump(mode=info.mode)

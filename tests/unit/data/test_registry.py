"""Registries: ours by name, a user's class as `module:Class`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import ValidationError

from quadriga.data.registry import Choice, Registry, import_object
from quadriga.data.settings import Settings


class Shape(Settings):
    type: str


class Circle(Shape):
    type: Literal["circle"]
    radius: float = 1.0


SHAPES: Registry[type[Shape]] = Registry("a shape", Shape, {"circle": Circle})


class Drawing(Settings):
    shape: Annotated[Shape, Choice(SHAPES)]


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, outside the tree."""
    name = f"shapes_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from quadriga.data.settings import Settings\n"
        "from shape_base import Shape\n"
        "class Square(Shape):\n"
        "    side: float\n"
        "class Other: ...\n"
    )
    monkeypatch.setitem(sys.modules, "shape_base", sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    return name


def test_a_registered_type_is_validated_by_its_class() -> None:
    drawing = Drawing.model_validate({"shape": {"type": "circle", "radius": 2}})
    assert drawing.shape == Circle(type="circle", radius=2.0)


def test_a_user_class_is_validated_by_its_fields(user_module: str) -> None:
    drawing = Drawing.model_validate({"shape": {"type": f"{user_module}:Square", "side": 3}})
    assert type(drawing.shape).__name__ == "Square"
    assert drawing.model_dump(mode="json") == {"shape": {"type": f"{user_module}:Square", "side": 3.0}}
    assert Drawing.model_validate(drawing.model_dump()) == drawing


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"type": "NAME:Square"}, "NAME:Square says: side: Field required"),
        ({"type": "NAME:Square", "side": 1, "colour": 2}, "colour: Extra inputs"),
        ({"type": "NAME:Nothing"}, "the module NAME has no `Nothing`"),
        ({"type": "NAME:Other"}, "`NAME:Other` is not a shape: it is not of"),
        ({"type": "no_such_module:Square"}, "cannot be imported"),
        ({"type": "pentagon"}, "does not match any of the expected tags: 'circle'"),
    ],
)
def test_errors_name_the_class_and_the_key(user_module: str, shape: dict[str, object], message: str) -> None:
    given = shape | {"type": str(shape["type"]).replace("NAME", user_module)}
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate({"shape": given})
    assert message.replace("NAME", user_module) in str(caught.value)


def test_the_working_directory_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert import_object("math:pi") > 3
    assert sys.path[-1] == str(tmp_path)


def test_the_json_schema_lists_the_registered_types() -> None:
    assert "radius" in Drawing.model_json_schema()["$defs"]["Circle"]["properties"]

"""What users may rely on: the names of `holdfast`, and what can be called on what they return.

`public_api.json` is the face as it was last agreed on. After a change that is meant, write it anew and say so in
CHANGELOG.md: `python tests/contracts/test_public_face.py`.
"""

import ast
import inspect
import json
import subprocess
import sys
from enum import Enum
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import holdfast

SNAPSHOT = Path(__file__).with_name("public_api.json")

# Not imported by name, but in everybody's hands: what the front door and its answers give. We make them, users do not.
REACHED = [
    "holdfast.runtime.runtime:Runtime",
    "holdfast.runtime.runtime:RunHandle",
    "holdfast.runtime.runtime:RunReport",
    "holdfast.runtime.blocking:BlockingRuntime",
    "holdfast.runtime.blocking:BlockingRun",
    "holdfast.contracts.approvals:Approval",
    "holdfast.contracts.models:ModelResponse",
    "holdfast.contracts.tools:ToolResult",
    "holdfast.contracts.tools:ToolTerms",
    "holdfast.nodes.context:Current",
    "holdfast.nodes.context:Budget",
    "holdfast.nodes.doors:Models",
    "holdfast.nodes.doors:Tools",
    "holdfast.nodes.fanout:SpecialistOutcome",
]


def face() -> dict[str, Any]:
    """Every public name with what can be done with it."""
    named = {name: described(getattr(holdfast, name)) for name in holdfast.__all__}
    reached = {where: described(found(where)) for where in REACHED}
    return named | reached


def found(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def described(thing: Any) -> Any:
    if not inspect.isclass(thing):
        return signature(thing)
    if issubclass(thing, Enum):
        return {"values": [member.value for member in thing]}
    members = {}
    for name in sorted(public_names(thing)):
        member = inspect.getattr_static(thing, name, None)
        if isinstance(member, property | cached_property):
            members[name] = "property"
        elif callable(getattr(thing, name, None)):
            members[name] = signature(getattr(thing, name))
        else:
            members[name] = "attribute"
    if issubclass(thing, BaseModel):
        return {"fields": fields(thing), "members": {n: m for n, m in members.items() if n not in thing.model_fields}}
    if f"{thing.__module__}:{thing.__qualname__}" in REACHED:
        return {"members": members}
    return {"call": signature(thing), "members": members}


def public_names(thing: type) -> set[str]:
    """What our own classes in the line of `thing` define; not what Pydantic or LangChain add."""
    ours = [kind for kind in thing.__mro__ if kind.__module__.startswith("holdfast.")]
    return {name for kind in ours for name in {**vars(kind), **inspect.get_annotations(kind)} if name[0] != "_"} - {
        "model_config"
    }


def fields(model: type[BaseModel]) -> dict[str, str]:
    return {
        name: "required" if field.is_required() else "optional" for name, field in sorted(model.model_fields.items())
    }


def signature(function: Any) -> str:
    """Names, kinds and defaults. Types are the type checker's to hold, and print differently from Python to Python."""
    given = inspect.signature(function)
    bare = [
        parameter.replace(
            annotation=inspect.Parameter.empty,
            default=parameter.default if simple(parameter.default) else Shown("..."),
        )
        for parameter in given.parameters.values()
    ]
    return str(given.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def simple(default: Any) -> bool:
    return default is inspect.Parameter.empty or isinstance(default, str | int | float | bool | tuple | None)


class Shown:
    """A default whose value is its own business."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def test_the_face_is_as_it_was_agreed_on():
    agreed = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert face() == agreed, "if the change is meant: python tests/contracts/test_public_face.py, and CHANGELOG.md"


def test_every_name_is_exported_once_in_every_way():
    tree = ast.parse(Path(holdfast.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    checked = [
        alias.asname or alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert sorted(checked) == sorted(holdfast._ROOM) == sorted(holdfast.__all__)
    assert dir(holdfast) == sorted(holdfast.__all__)


def test_a_name_is_what_the_type_checker_takes_it_for():
    tree = ast.parse(Path(holdfast.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    for node in typed.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert f"holdfast.{holdfast._ROOM[alias.name]}" == node.module
            assert getattr(holdfast, alias.name) is getattr(import_module(str(node.module)), alias.name)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = holdfast.nothing_of_ours  # type: ignore[attr-defined]


def test_importing_the_package_imports_no_room():
    script = "import sys, holdfast; print([name for name in sys.modules if name.startswith('holdfast.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [*holdfast.__all__, *REACHED])
def test_every_public_thing_and_every_method_of_it_says_what_it_is(name: str):
    thing = found(name) if ":" in name else getattr(holdfast, name)
    silent = [] if inspect.getdoc(thing) and own_words(thing) else [name]
    if inspect.isclass(thing):
        methods = {n: m for n in public_names(thing) if inspect.isfunction(m := inspect.getattr_static(thing, n, None))}
        silent += [f"{name}.{method}" for method, function in methods.items() if not inspect.getdoc(function)]
    assert silent == []


def own_words(thing: Any) -> bool:
    """Whether the docstring is its own and not inherited from a base class of somebody else."""
    return not inspect.isclass(thing) or bool(vars(thing).get("__doc__"))


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(face(), indent=2, sort_keys=True) + "\n", encoding="utf-8")

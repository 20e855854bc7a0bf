"""The installed package's source, room by room: links in the checkout, real folders in the wheel."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import holdfast

PACKAGE = Path(holdfast.__file__).parent
HOUSE = ["contracts", "policies", "telemetry", "checkpoints", "gateway", "nodes", "graphs", "runtime", "server"]
ROOMS = [*HOUSE, "testing"]  # `testing` stands beside the house, and may do what tests do


@dataclass(frozen=True)
class Source:
    """One module's text and tree."""

    name: str
    """As `room/module.py`."""
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.split("/")[0]

    @property
    def module(self) -> str:
        return "holdfast." + self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def imports(self) -> Iterator[str]:
        """Every name that is imported, wherever in the module: `os`, `os.environ`, `asyncio.create_task`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def uses(self) -> Iterator[str]:
        """Every dotted name that is imported or written out: `os.environ`, `time.monotonic`."""
        yield from self.imports()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and (name := dotted(node)) is not None:
                yield name

    def strings(self) -> Iterator[str]:
        """Every text, f-strings piece by piece; not those that stand alone, which are docstrings."""
        alone = {id(node.value) for node in ast.walk(self.tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
                yield node.value

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """Every call, with the qualified name of the function that it stands in."""
        yield from _calls(self.tree, "")


def dotted(node: ast.expr) -> str | None:
    """`a.b.c` as text; None for anything that is more than names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)) is not None:
        return f"{left}.{node.attr}"
    return None


def _calls(node: ast.AST, inside: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield inside, child
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _calls(child, f"{inside}.{child.name}".lstrip(".") if named else inside)


@cache
def sources() -> tuple[Source, ...]:
    """Every module of every room."""
    found = []
    for room in ROOMS:
        folder = (PACKAGE / room).resolve()
        for path in sorted(folder.rglob("*.py")):
            name = f"{room}/{path.relative_to(folder).as_posix()}"
            found.append(Source(name, ast.parse(path.read_text(encoding="utf-8"), name)))
    return tuple(found)


def house() -> list[Source]:
    """Every module but those of `testing`."""
    return [source for source in sources() if source.room in HOUSE]

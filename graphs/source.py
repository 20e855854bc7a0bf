"""What a piece of code says, told so that comments, formatting and places do not matter; and whose code it is.

The text of a function's source is believed only when it compiles to the very code that runs: a file may have been
edited since it was imported. Then its syntax tree is what counts, which is the same under every version of Python.
Where there is no such text, the bytecode counts, which is not. Nothing is imported or executed here.
"""

import ast
import inspect
import linecache
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import packages_distributions
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import CodeType
from typing import Any

_PLACES = frozenset({"ctx", "kind", "type_comment"})
_FRAMEWORKS = ("langchain", "langgraph", "langsmith", "pydantic")
_CONTENT = "holdfast.graphs."
_INSTALLED = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True)
class Written:
    """A piece of code as its author wrote it."""

    digest: str
    imports: tuple[str, ...] = ()
    """Modules that it may import when it runs."""


class Sources:
    """Files as they are read once, for as long as one signature is worked out: trees are large."""

    def __init__(self) -> None:
        self._files: dict[str, _Source | None] = {}

    def function(self, code: CodeType, module: dict[str, Any]) -> Written:
        """The code of a function whose globals are `module`."""
        source = self._source(code.co_filename, module)
        node = None if source is None else source.function(code)
        if node is None:
            return Written(f"bytecode {sys.version_info.major}.{sys.version_info.minor} {_digest(_bytecode(code))}")
        return Written(_digest(_words(node)), _imports(node, str(module.get("__package__") or "")))

    def module(self, spec: ModuleSpec) -> Written | None:
        """A whole module, unimported; None where it has no source."""
        source = self._source(str(spec.origin), {})
        package = spec.name if spec.submodule_search_locations is not None else spec.parent or ""
        return None if source is None else Written(_digest(_words(source.tree)), _imports(source.tree, package))

    def _source(self, file: str, module: dict[str, Any]) -> "_Source | None":
        if file not in self._files:
            linecache.checkcache(file)
            text = "".join(linecache.getlines(file, module))
            try:
                self._files[file] = _Source(text) if text else None
            except (SyntaxError, ValueError, RecursionError):  # no Python, whatever it is
                self._files[file] = None
        return self._files[file]


class Unread(Sources):
    """No files: for whoever asks what code names, not what it says. Parsing takes most of the time of a signature."""

    def function(self, code: CodeType, module: dict[str, Any]) -> Written:
        """Nothing."""
        return Written("")

    def module(self, spec: ModuleSpec) -> Written | None:
        """Nothing."""
        return None


_Place = tuple[str, int]


class _Source:
    """The text of a file, parsed and compiled."""

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)
        self._nodes: dict[_Place, list[ast.AST]] = {}
        self._codes: dict[_Place, list[CodeType]] = {}
        for node in ast.walk(self.tree):
            if (place := _place_of(node)) is not None:
                self._nodes.setdefault(place, []).append(node)
        for code in _codes_in(compile(text, "<source>", "exec", dont_inherit=True)):
            self._codes.setdefault((code.co_name, code.co_firstlineno), []).append(code)

    def function(self, code: CodeType) -> ast.AST | None:
        """The function that compiles to this code; None where there is none, or it cannot be told which."""
        place = (code.co_name, code.co_firstlineno)
        nodes = self._nodes.get(place, [])
        return nodes[0] if len(nodes) == 1 and code in self._codes.get(place, []) else None


def _place_of(node: ast.AST) -> _Place | None:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return node.name, min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        case ast.Lambda():
            return "<lambda>", node.lineno
    return None


def is_generated(code: CodeType) -> bool:
    """Whether no author wrote this: a dataclass's `__init__`, say."""
    return code.co_filename.startswith("<") and not linecache.getlines(code.co_filename)


def names_in(code: CodeType) -> frozenset[str]:
    """The global names and the attributes that a function and the functions in it use, undistinguished."""
    return frozenset(code.co_names).union(*(names_in(each) for each in code.co_consts if isinstance(each, CodeType)))


class Project:
    """Whose code is whose. The project's own is what stands outside `site-packages`, and what was installed together
    with the graph; frameworks, other distributions and the standard library are not, and nor is holdfast, whose graphs
    are content."""

    def __init__(self, modules: Iterable[str]) -> None:
        """`modules` are those that the graph's nodes, tools and schemas stand in."""
        roots = {name for name in modules if not _is_framework(name)}
        installed = {_top(name) for name in roots if _is_installed(_file_of(name))}
        self._own = _together_with(frozenset(installed)) if installed else frozenset()
        self._known: dict[str, bool] = {}
        self.folders = sorted({folder for name in roots if (folder := _folder_of(name))}, key=len, reverse=True)
        """Where its packages stand; they differ from machine to machine."""

    def owns(self, module: str) -> bool:
        """Whether the code of a module counts."""
        if module not in self._known:
            self._known[module] = self._is_own(module, _file_of(module))
        return self._known[module]

    def found(self, module: str) -> ModuleSpec | None:
        """Where a module of the project's own is, whether or not it was imported; None for any other."""
        if _is_framework(module):
            return None
        spec = _spec(module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return None
        return spec if self._is_own(module, spec.origin) else None

    def _is_own(self, module: str, file: str | None) -> bool:
        if _is_framework(module):
            return False
        return not _is_installed(file) or _top(module) in self._own


def _is_framework(module: str) -> bool:
    top = _top(module)
    if top == "holdfast":
        return not module.startswith(_CONTENT)
    return top in sys.stdlib_module_names or top.startswith(_FRAMEWORKS)


def _is_installed(file: str | None) -> bool:
    return file is not None and not _INSTALLED.isdisjoint(Path(file).parts)


def _top(module: str) -> str:
    return module.partition(".")[0]


def _file_of(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)


def _folder_of(module: str) -> str | None:
    file = _file_of(module)
    if file is None:
        return None
    depth = module.count(".") + (Path(file).name == "__init__.py")
    return str(Path(file).parents[min(depth, len(Path(file).parents) - 1)])


@cache
def _together_with(tops: frozenset[str]) -> frozenset[str]:
    """The packages of the distributions that these packages came with."""
    distributions = packages_distributions()
    came_with = {name for top in tops for name in distributions.get(top, ())}
    return tops | {top for top, names in distributions.items() if came_with.intersection(names)}


def _spec(module: str) -> ModuleSpec | None:
    """The spec of a module. Unlike `importlib.util.find_spec`, this imports no parents."""
    top, *below = module.split(".")
    try:
        spec = find_spec(top)
        for depth, _ in enumerate(below, start=1):
            if spec is None or spec.submodule_search_locations is None:
                return None
            name = ".".join((top, *below[:depth]))
            spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    except (ImportError, ValueError):
        return None
    return spec


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes_in(each)


def _words(node: ast.AST) -> list[str]:
    """A syntax tree without its places. A docstring counts, for models read them; other texts that stand alone are
    comments."""
    words: list[str] = []
    _write(node, words)
    return words


def _write(value: object, words: list[str]) -> None:
    if isinstance(value, ast.AST):
        words.append(f"({type(value).__name__}")
        for field in value._fields:
            inner = getattr(value, field, None)
            if inner is not None and inner != [] and field not in _PLACES:
                words.append(field)
                _write(_spoken(inner) if field == "body" else inner, words)
        words.append(")")
    elif isinstance(value, list):
        words.append("[")
        for each in value:
            _write(each, words)
        words.append("]")
    else:
        words.append(repr(value))


def _spoken(body: Any) -> Any:
    """A body whose docstring is as `inspect.getdoc` gives it, and without texts that do nothing."""
    if not isinstance(body, list):
        return body
    return [
        _cleaned(each) if place == 0 else each for place, each in enumerate(body) if place == 0 or not _is_text(each)
    ]


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _cleaned(statement: ast.stmt) -> ast.stmt:
    if not _is_text(statement):
        return statement
    return ast.Expr(ast.Constant(inspect.cleandoc(statement.value.value)))  # type: ignore[attr-defined]  # it is a text


def _imports(node: ast.AST, package: str) -> tuple[str, ...]:
    found: set[str] = set()
    for each in ast.walk(node):
        match each:
            case ast.Import():
                found.update(name.name for name in each.names)
            case ast.ImportFrom():
                base = _resolved(each, package)
                found.update((base, *(f"{base}.{name.name}" for name in each.names)) if base else ())
    return tuple(sorted(found))


def _resolved(node: ast.ImportFrom, package: str) -> str | None:
    try:
        return resolve_name("." * node.level + (node.module or ""), package)
    except ImportError:
        return None


def _bytecode(code: CodeType) -> list[str]:
    """A code object without its places."""
    words = [code.co_name, code.co_code.hex(), code.co_exceptiontable.hex()]
    words += [str(number) for number in (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)]
    words += [str(code.co_flags), *code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars]
    return words + [word for constant in code.co_consts for word in _constant(constant)]


def _constant(value: object) -> list[str]:
    match value:
        case CodeType():
            return ["code", *_bytecode(value)]
        case frozenset():
            return ["frozenset", *sorted(repr(each) for each in value)]
        case tuple():
            return ["tuple", *(word for each in value for word in _constant(each)), "end"]
        case _:
            return [repr(value)]


def _digest(words: Sequence[str]) -> str:
    """One digest of words, which cannot be parted otherwise."""
    said = sha256()
    for word in words:
        data = word.encode("utf-8", "surrogatepass")
        said.update(b"%d:%b" % (len(data), data))
    return said.hexdigest()

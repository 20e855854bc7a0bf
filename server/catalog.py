"""The graphs of a project: those that its `langgraph.json` names, and any other by `module:attribute`."""

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from langgraph.graph import StateGraph
from langgraph.pregel import Pregel

from holdfast.contracts.errors import ConfigurationError, HoldfastError, NotFound
from holdfast.graphs.govern import govern
from holdfast.graphs.governed import GovernedGraph
from holdfast.graphs.signature import MARK

DEFAULT_FILE = Path("langgraph.json")

Graph = Pregel[Any, Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Names of graphs and where each is found."""

    refs: Mapping[str, str] = field(default_factory=dict)
    """`./file.py:attribute` or `package.module:attribute`, by name."""
    folder: Path = Path()
    """What relative files and modules of the project are relative to."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.refs)

    def load(self, name: str) -> GovernedGraph:
        """The governed graph of that name, or of a reference `module:attribute`. One that its author has not governed
        is governed under the name it was asked for by.

        Raises `NotFound` for a name that is not here, `ConfigurationError` for a graph that cannot be loaded.
        """
        if (ref := self.refs.get(name)) is None and ":" not in name:
            known = ", ".join(sorted(self.refs)) or "none"
            raise NotFound(
                f"there is no graph {name!r}; langgraph.json names: {known} (or give it as module:attribute)"
            )
        graph = _loaded(name, ref or name, self.folder)
        governed = graph if isinstance(graph, GovernedGraph) else govern(graph, name=name)
        assert isinstance(governed, GovernedGraph)  # govern() makes it one in place
        return governed

    def recorded_as(self, name: str) -> Sequence[GovernedGraph]:
        """The graphs that runs of that name are of. Most often it is the name that the graph has here, but its author
        may govern it under another; and one that nobody names is called LangGraph, as any other is.

        Raises as `load` does where there is none.
        """
        if (name in self.refs or ":" in name) and (own := self.load(name)).governance.name == name:
            return [own]
        return [graph for _, graph in self._loaded() if graph.governance.name == name] or [self.load(name)]

    def twin_of(self, name: str) -> str | None:
        """The name, before this one, of another graph whose runs would be taken for this one's: they are recorded under
        the same name and the same version, which an author gave to both."""
        own = self.load(name)
        if own.governance.version.startswith(MARK):  # the same code then, which may go on with either's
            return None
        for other, graph in self._loaded():
            if other == name:
                break
            if graph is not own and self.refs[other] != self.refs[name] and _recorded(graph) == _recorded(own):
                return other
        return None

    def _loaded(self) -> Iterator[tuple[str, GovernedGraph]]:
        for name in self.refs:
            with suppress(HoldfastError):  # whoever needs it is told when it is asked for by name
                yield name, self.load(name)


def _recorded(graph: GovernedGraph) -> tuple[str, str]:
    return graph.governance.name, graph.governance.version


def twins(catalog: Catalog, name: str, other: str) -> str:
    """What is to be done about two graphs whose runs cannot be told apart."""
    recorded, version = _recorded(catalog.load(name))
    return (
        f"the runs of {name} and of {other} are both called {recorded}, of version {version}, and {other} would go on "
        "with either's: give each a name of its own, govern(…, name=…)"
    )


def read_catalog(path: Path | None = None) -> Catalog:
    """The catalog of `path`, or of the `langgraph.json` in the current folder; empty when there is none there.

    Raises `ConfigurationError` when the file cannot be read, or a named one is missing.
    """
    file = path or DEFAULT_FILE
    if path is None and not file.is_file():
        return Catalog(folder=Path.cwd())
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["graphs"]
        refs = {name: entry if isinstance(entry, str) else entry["path"] for name, entry in entries.items()}
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigurationError(f"{file} is not JSON: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f'{file} names no graphs; it needs {{"graphs": {{"name": "module:attr"}}}}') from error
    return Catalog(refs, file.resolve().parent)


def _loaded(name: str, ref: str, folder: Path) -> Graph:
    module, _, attribute = ref.rpartition(":")
    if not module or not attribute:
        raise ConfigurationError(f"graph {name!r}: {ref!r} is not of the form module:attribute or ./file.py:attribute")
    found = getattr(_module(name, module, folder), attribute, None)
    if found is None:
        raise ConfigurationError(f"graph {name!r}: {module} has no {attribute!r}")
    return _compiled(name, ref, found)


def _module(name: str, module: str, folder: Path) -> ModuleType:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return _from_file(folder / module, folder) if module.endswith(".py") else importlib.import_module(module)
    except HoldfastError:
        raise
    except BaseException as error:
        if isinstance(error, Exception | SystemExit):
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ConfigurationError(f"graph {name!r}: {module} cannot be imported: {said}") from error
        raise


def _from_file(path: Path, folder: Path) -> ModuleType:
    """The module of a file. Its name is the same in every process, since checkpoints name classes by their module:
    where the project itself can import it (`./desk/graph.py` as `desk.graph`), that name."""
    spelt = path.resolve()
    inside = spelt.relative_to(folder).with_suffix("").parts if spelt.is_relative_to(folder) else ()
    if inside and all(part.isidentifier() for part in inside) and (module := _importable(inside, spelt)) is not None:
        return module
    module_name = f"holdfast_graph_{spelt.stem}"
    known = sys.modules.get(module_name)
    if known is not None and known.__file__ == str(spelt):
        return known
    spec = importlib.util.spec_from_file_location(module_name, spelt)
    if spec is None or spec.loader is None or not spelt.is_file():
        raise ConfigurationError(f"there is no file {spelt}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _importable(parts: tuple[str, ...], path: Path) -> ModuleType | None:
    """The module of that dotted name, where it is the one of this file and not another of the same name."""
    name = ".".join(parts)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        return None
    return importlib.import_module(name)


def _compiled(name: str, ref: str, found: Any) -> Graph:
    made = _made(name, found) if callable(found) and not isinstance(found, Pregel | StateGraph) else found
    if isinstance(made, StateGraph):
        made = made.compile()
    if not isinstance(made, Pregel):
        raise ConfigurationError(f"graph {name!r}: {ref} is a {type(made).__name__}, not a compiled graph")
    return made


def _made(name: str, factory: Any) -> Any:
    """What a factory makes: one without parameters, or with LangGraph's single `config`."""
    needed = [each for each in inspect.signature(factory).parameters.values() if each.default is each.empty]
    if len(needed) > 1 or inspect.iscoroutinefunction(factory):
        raise ConfigurationError(f"graph {name!r}: its factory must be a plain function of nothing, or of a config")
    try:
        return factory({"configurable": {}}) if needed else factory()
    except HoldfastError:
        raise
    except Exception as error:
        raise ConfigurationError(f"graph {name!r}: its factory failed: {type(error).__name__}: {error}") from error

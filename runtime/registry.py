"""The graphs that this process can execute, by name and version."""

from collections.abc import Iterator
from typing import Any

from langgraph.pregel import Pregel

from holdfast.contracts.errors import Conflict, NotFound
from holdfast.contracts.runs import GraphVersion

Graph = Pregel[Any, Any, Any, Any]


def is_governed(graph: object) -> bool:
    """Whether `govern()` has been here."""
    return hasattr(graph, "governance")


class Registry:
    """Governed graphs, each under the name and version that runs record."""

    def __init__(self) -> None:
        self._graphs: dict[str, dict[str, Graph]] = {}

    def add(self, graph: Graph) -> Graph:
        """Register a governed graph. The same name and version twice must be the same graph."""
        if not is_governed(graph):
            raise Conflict(f"graph {graph.name!r} is not governed; register govern(graph)")
        governance: Any = graph.governance  # type: ignore[attr-defined]  # just checked
        versions = self._graphs.setdefault(governance.name, {})
        versions.pop(governance.version, None)
        versions[governance.version] = graph
        return graph

    def get(self, name: str, version: str) -> Graph:
        """The graph of that name and version; `NotFound` says which versions there are."""
        versions = self._graphs.get(name, {})
        if version not in versions:
            known = f"its versions here are {', '.join(versions)}" if versions else f"known graphs: {self._known()}"
            raise NotFound(f"no graph {name!r} of version {version!r} is registered here; {known}", graph=name)
        return versions[version]

    def latest(self, name: str) -> Graph:
        """The version of `name` that was registered last; `NotFound` lists the names there are."""
        if name not in self._graphs:
            raise NotFound(f"no graph is named {name!r}; known graphs: {self._known()}", graph=name)
        return next(reversed(self._graphs[name].values()))

    def served(self) -> list[GraphVersion]:
        """What this process can serve. A run of another version waits for a worker that has it."""
        return [GraphVersion(name, version) for name, versions in self._graphs.items() for version in versions]

    def __iter__(self) -> Iterator[Graph]:
        return (graph for versions in self._graphs.values() for graph in versions.values())

    def _known(self) -> str:
        return ", ".join(sorted(self._graphs)) or "none"

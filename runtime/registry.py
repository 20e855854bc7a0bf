"""The graphs that this process can execute, by name and version."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from langgraph.pregel import Pregel

from holdfast.contracts.errors import Conflict, NotFound
from holdfast.contracts.runs import GraphVersion
from holdfast.contracts.workers import ServedGraph

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
        governance = _terms_of(graph)
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

    def resolve(self, name: str, version: str) -> Graph:
        """The graph that goes on with a run of that version: the very one, or the one registered last of those that
        declare it compatible. `NotFound` says which versions there are."""
        if version not in self._graphs.get(name, {}):
            for graph in reversed(self._graphs.get(name, {}).values()):
                if _terms_of(graph).compatible.admits(version):
                    return graph
        return self.get(name, version)

    def serves(self, name: str, version: str) -> bool:
        """Whether this process can go on with a run of that version."""
        versions = self._graphs.get(name, {})
        return version in versions or any(_terms_of(graph).compatible.admits(version) for graph in versions.values())

    def served(self, claimable: Iterable[GraphVersion] = ()) -> Mapping[GraphVersion, str]:
        """The versions whose runs this process goes on with, each with the version whose code does: all that are named
        by a graph, and of `claimable` those that lie in a graph's range. A run of any other waits for a worker that
        has its code."""
        terms = [_terms_of(graph) for graph in self]
        found = {GraphVersion(own.name, own.version): own.version for own in terms}
        listed = (GraphVersion(own.name, version) for own in terms for version in own.compatible.versions)
        for each in (*listed, *claimable):
            if each not in found and self.serves(*each):
                found[each] = _terms_of(self.resolve(*each)).version
        return found

    def ranged(self) -> list[str]:
        """The names of graphs of which a version declares a range."""
        return sorted({own.name for own in map(_terms_of, self) if own.compatible.ranges})

    def notice(self) -> list[ServedGraph]:
        """What this process tells the others that it serves."""
        return [_terms_of(graph).served for graph in self]

    def __iter__(self) -> Iterator[Graph]:
        return (graph for versions in self._graphs.values() for graph in versions.values())

    def _known(self) -> str:
        return ", ".join(sorted(self._graphs)) or "none"


def _terms_of(graph: Graph) -> Any:
    """Its `graphs.governed.Governance`, which this room does not know: whatever is registered is governed."""
    return graph.governance  # type: ignore[attr-defined]

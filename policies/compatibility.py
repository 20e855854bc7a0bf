"""Which runs a graph goes on with: those of its own version, and of the versions that it declares compatible."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from holdfast.contracts.errors import InvalidRequest
from holdfast.contracts.runs import GraphVersion
from holdfast.contracts.workers import ServedGraph

SAME = "same"
_OPERATORS = ("<", ">", "=", "!", "~")


@dataclass(frozen=True, slots=True)
class Compatibility:
    """What a graph declares besides its own version."""

    ranges: tuple[str, ...] = ()
    """PEP 440 specifiers, `>=2.0,<3`; a version that is no PEP 440 number lies in none of them."""
    versions: frozenset[str] = frozenset()
    """Versions by name, whatever they look like."""

    @classmethod
    def of(cls, declared: str | Sequence[str], *, version: str | None) -> "Compatibility":
        """From what an author writes: `"same"`, a range, a version, or several of them.

        Raises `InvalidRequest` for a range that is none, or that is declared by a version that lies in no range.
        """
        texts = [declared] if isinstance(declared, str) else list(declared)
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise InvalidRequest('compatible is "same", a range such as ">=2.0,<3", a version, or a list of those')
        ranges = tuple(text for text in texts if text.strip().startswith(_OPERATORS))
        for text in ranges:
            _require_range(text)
        if ranges and (version is None or _number(version) is None):
            raise InvalidRequest(
                f"compatible={ranges[0]!r} is a range of version numbers, so version= must be one (PEP 440, such as "
                f'"2.1.0"), not {version!r}; versions of another form can be listed by name'
            )
        return cls(ranges, frozenset(texts) - {SAME} - frozenset(ranges))

    def admits(self, version: str) -> bool:
        """Whether a run of `version` may be gone on with."""
        return version in self.versions or any(_lies_in(version, text) for text in self.ranges)

    @property
    def texts(self) -> tuple[str, ...]:
        """What was declared, in words."""
        return (*self.ranges, *sorted(self.versions))


def serves(served: ServedGraph, wanted: GraphVersion) -> bool:
    """Whether a graph that someone serves goes on with a run of this version."""
    if served.name != wanted.name:
        return False
    ranges = tuple(text for text in served.compatible if text.startswith(_OPERATORS))
    return served.version == wanted.version or Compatibility(ranges, frozenset(served.compatible)).admits(
        wanted.version
    )


def unserved(wanted: Iterable[GraphVersion], served: Iterable[ServedGraph]) -> set[GraphVersion]:
    """The versions that nobody of these goes on with."""
    those = list(served)
    return {each for each in wanted if not any(serves(graph, each) for graph in those)}


def _require_range(text: str) -> None:
    try:
        _range(text)
    except InvalidSpecifier as error:
        raise InvalidRequest(
            f'compatible={text!r} is no range of version numbers; write one as PEP 440 does, such as ">=2.0,<3"'
        ) from error


def _lies_in(version: str, text: str) -> bool:
    number = _number(version)
    return number is not None and _range(text).contains(number, prereleases=True)


@lru_cache(maxsize=1024)
def _range(text: str) -> SpecifierSet:
    return SpecifierSet(text)


@lru_cache(maxsize=4096)
def _number(version: str) -> Version | None:
    try:
        return Version(version)
    except InvalidVersion:
        return None

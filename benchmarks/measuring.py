"""Side by side or not at all: the machine's speed drifts, so alternatives are measured in turns and compared in ratios.

A round measures every cell once, in an order that rotates. A ratio is taken within a round; what is reported is the
median of the rounds.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Measured:
    """One cell, once."""

    per_second: float
    p50_ms: float
    p99_ms: float


Cell = Callable[[], Awaitable[Measured]]


class Rounds:
    """What was measured, by cell."""

    def __init__(self) -> None:
        self._found: dict[str, list[Measured]] = {}

    async def play(self, cells: Mapping[str, Cell], rounds: int) -> None:
        names = list(cells)
        for number in range(rounds):
            shift = number % len(names)
            for name in (*names[shift:], *names[:shift]):
                self._found.setdefault(name, []).append(await cells[name]())

    def per_second(self, name: str) -> float:
        return median(each.per_second for each in self._found[name])

    def p50_ms(self, name: str) -> float:
        return median(each.p50_ms for each in self._found[name])

    def p99_ms(self, name: str) -> float:
        return median(each.p99_ms for each in self._found[name])

    def ratio(self, name: str, to: str) -> float:
        pairs = zip(self._found[name], self._found[to], strict=True)
        return median(one.per_second / other.per_second for one, other in pairs)

    def range_of_ratio(self, name: str, to: str) -> tuple[float, float]:
        pairs = zip(self._found[name], self._found[to], strict=True)
        ratios = [one.per_second / other.per_second for one, other in pairs]
        return min(ratios), max(ratios)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

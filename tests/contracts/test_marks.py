"""The marks: each stands in the code, has its sentence, and costs nothing unless something is bound to it."""

import ast

import pytest
from documents import rows, section
from sources import dotted, house, sources

from holdfast.contracts.errors import ConfigurationError
from holdfast.contracts.marks import Mark, bound, reach, reach_in_thread

REACHED = {"reach", "reach_in_thread"}


def sentences() -> dict[str, str]:
    """What the code says of each mark, by its value."""
    [module] = [source for source in sources() if source.name == "contracts/marks.py"]
    [marks] = [node for node in module.tree.body if isinstance(node, ast.ClassDef) and node.name == "Mark"]
    told = {}
    for member, words in zip(marks.body[1::2], marks.body[2::2], strict=True):
        assert isinstance(member, ast.Assign)
        assert isinstance(words, ast.Expr), "every mark has its sentence"
        told[ast.literal_eval(member.value)] = ast.literal_eval(words.value)
    return told


def reached() -> list[str]:
    """The marks that the code comes to, once for each place."""
    found = []
    for source in house():
        for _, call in source.calls():
            if (dotted(call.func) or "").rpartition(".")[2] in REACHED and source.name != "contracts/marks.py":
                [mark] = call.args
                found.append((dotted(mark) or "?").removeprefix("Mark."))
    return found


def test_every_mark_stands_in_the_code_and_nothing_else_does():
    assert set(reached()) == {mark.name for mark in Mark}


def test_every_mark_has_its_sentence_and_its_row():
    assert set(sentences()) == {mark.value for mark in Mark}
    table = {row[0].strip("`"): row[1] for row in rows(section("simulation.md", "Marks"))}
    assert table == {mark: sentence.rstrip(".") for mark, sentence in sentences().items()}


def test_mark_with_nothing_bound_yields_to_nobody():
    coming = reach(Mark.TOOL_SENT)
    with pytest.raises(StopIteration):
        coming.send(None)
    reach_in_thread(Mark.LEASE_RENEWING)


class Told:
    def __init__(self) -> None:
        self.marks: list[Mark] = []

    async def reach(self, mark: Mark) -> None:
        self.marks.append(mark)

    def reach_in_thread(self, mark: Mark) -> None:
        self.marks.append(mark)


async def test_what_is_bound_is_told_of_each_mark_while_its_block_lasts():
    told = Told()
    with bound(told):
        await reach(Mark.TOOL_SENT)
        reach_in_thread(Mark.LEASE_RENEWING)
        with pytest.raises(ConfigurationError, match="already"), bound(Told()):
            pass
    await reach(Mark.TOOL_SENT)
    assert told.marks == [Mark.TOOL_SENT, Mark.LEASE_RENEWING]

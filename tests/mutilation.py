"""Takes conditions out of statements, as whoever forgets a WHERE does. Postgres' own parser reads and writes them."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pglast import ast, parse_sql
from pglast.enums import OnConflictAction
from pglast.parser import parse_plpgsql_json
from pglast.stream import RawStream
from pglast.visitors import Visitor
from wiretap import Sent

_LOCKS = re.compile(r", (?=(?:(?:NO KEY )?UPDATE|(?:KEY )?SHARE) OF )")
"""pglast writes several locking clauses as if they were one."""
_WHOLE_STATEMENT = 0
_SELECT, _PERFORM = "SELECT", "perform"
_REACHED = "\n perform set_config('walls.reached', 'yes', true);\n "
"""How PL/pgSQL reads what is neither an expression nor an assignment."""


@dataclass(frozen=True)
class Statement:
    """A statement that can be sent again, with values for the parameters that it still has."""

    form: str
    """What was done to it."""
    text: str
    names: tuple[str, ...]
    values: tuple[Any, ...]
    lacks: frozenset[int] = frozenset()
    """Which of its conditions it is without, by their numbers."""
    first: tuple[str, ...] = ()
    """What a superuser does before it."""

    def sent_as(self, sent: Sent) -> Sent:
        """As if it had been sent, and not what it was made of."""
        return replace(sent, text=self.text, names=self.names, values=self.values)


class _Conditions(Visitor):
    """Takes out those conditions of a tree of which `goes` says so, by what it is and which one of the statement."""

    def __init__(self, goes: Callable[[str, int], bool]) -> None:
        self._goes = goes
        self.seen = 0
        self.gone: set[int] = set()

    def _gone(self, what: str) -> bool:
        self.seen += 1
        if self._goes(what, self.seen):
            self.gone.add(self.seen)
        return self.seen in self.gone

    def _where(self, node: Any) -> None:
        for name in ("whereClause", "havingClause", "limitCount", "limitOffset"):
            if getattr(node, name, None) is not None and self._gone("where"):
                setattr(node, name, None)
                if name == "limitCount":
                    node.limitOption = 0

    def visit_SelectStmt(self, _: Any, node: Any) -> None:  # noqa: N802  # the parser's names
        self._where(node)

    visit_UpdateStmt = visit_DeleteStmt = visit_OnConflictClause = visit_SelectStmt  # noqa: N815

    def visit_JoinExpr(self, _: Any, node: Any) -> None:  # noqa: N802
        if node.quals is not None and self._gone("join"):
            node.quals = _true()
        if node.usingClause and self._gone("join"):
            node.usingClause = None
            node.quals = _true()


class _TenantConditions(Visitor):
    """Takes those terms out of every condition that name a tenant."""

    def __init__(self) -> None:
        self.found = False

    def _without(self, condition: Any) -> Any:
        if isinstance(condition, ast.BoolExpr) and condition.boolop == 0:
            left = [kept for kept in map(self._without, condition.args) if kept is not None]
            return ast.BoolExpr(boolop=condition.boolop, args=tuple(left)) if len(left) > 1 else next(iter(left), None)
        if condition is not None and names_a_tenant(condition):
            self.found = True
            return None
        return condition

    def _where(self, node: Any) -> None:
        node.whereClause = self._without(node.whereClause)

    def visit_SelectStmt(self, _: Any, node: Any) -> None:  # noqa: N802
        self._where(node)

    visit_UpdateStmt = visit_DeleteStmt = visit_OnConflictClause = visit_SelectStmt  # noqa: N815

    def visit_JoinExpr(self, _: Any, node: Any) -> None:  # noqa: N802
        if node.quals is not None:
            node.quals = self._without(node.quals) or _true()
        if node.usingClause and any(column.sval == "tenant_id" for column in node.usingClause):
            self.found = True
            node.usingClause = tuple(column for column in node.usingClause if column.sval != "tenant_id")


class _Tenants(Visitor):
    def __init__(self) -> None:
        self.found = False

    def visit_ColumnRef(self, _: Any, node: Any) -> None:  # noqa: N802
        self.found |= getattr(node.fields[-1], "sval", None) == "tenant_id"


def names_a_tenant(condition: Any) -> bool:
    """Whether a condition speaks of a tenant, and of nothing below it that is a query of its own."""
    visitor = _Tenants()
    if not isinstance(condition, ast.SubLink | ast.BoolExpr):
        visitor(condition)
    return visitor.found


def _true() -> Any:
    return ast.A_Const(isnull=False, val=ast.Boolean(boolval=True))


class _Parameters(Visitor):
    """Numbers the parameters anew that are left, for Postgres knows no type of one that is not used."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def visit_ParamRef(self, _: Any, node: Any) -> None:  # noqa: N802
        if node.number not in self.left:
            self.left.append(node.number)
        node.number = self.left.index(node.number) + 1


def _written(tree: Any, sent: Sent, form: str, lacks: Iterable[int] = ()) -> Statement:
    parameters = _Parameters()
    parameters(tree)
    names, values = (tuple(each[number - 1] for number in parameters.left) for each in (sent.names, sent.values))
    return Statement(form, written(tree), names, values, frozenset(lacks))


def written(tree: Any) -> str:
    """A parsed statement as text again."""
    return _LOCKS.sub(" FOR ", RawStream()(tree))


def _without(sent: Sent, form: str, goes: Callable[[str, int], bool]) -> Statement:
    tree, conditions = parse_sql(sent.text), _Conditions(goes)
    conditions(tree)
    return _written(tree, sent, form, conditions.gone)


def mutilated(sent: Sent) -> Sequence[Statement]:
    """The statement without any condition, without those that are no join's, and without those that name a tenant."""
    bare = _without(sent, "without a condition", lambda *_: True)
    found = [replace(bare, lacks=frozenset(range(1, conditions(sent) + 1)))]
    found.append(_without(sent, "without WHERE", lambda what, _: what == "where"))
    tenants, tree = _TenantConditions(), parse_sql(sent.text)
    tenants(tree)
    if tenants.found:
        found.append(_written(tree, sent, "without its tenant"))
    return list({statement.text: statement for statement in reversed(found)}.values())[::-1]


def without_one(sent: Sent, number: int) -> Statement:
    """The statement without one of its conditions."""
    return _without(sent, f"without condition {number}", lambda _, n: n == number)


def conditions(sent: Sent) -> int:
    """How many conditions a statement has."""
    visitor = _Conditions(lambda *_: False)
    visitor(parse_sql(sent.text))
    return visitor.seen


class _Peace(Visitor):
    """Lets every row stay that is there already."""

    def visit_InsertStmt(self, _: Any, node: Any) -> None:  # noqa: N802
        node.onConflictClause = ast.OnConflictClause(action=OnConflictAction.ONCONFLICT_NOTHING)


def in_peace(statement: Statement) -> Statement:
    """The statement, which leaves a row of the tenant's own as it is that would be written a second time."""
    tree = parse_sql(statement.text)
    _Peace()(tree)
    sent = Sent(statement.text, statement.names, statement.values, "", "", "")
    return _written(tree, sent, f"{statement.form}, in peace", statement.lacks)


class _Relations(Visitor):
    """The tables and functions that a statement names."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_RangeVar(self, _: Any, node: Any) -> None:  # noqa: N802
        self.found.add(node.relname)

    def visit_FuncCall(self, _: Any, node: Any) -> None:  # noqa: N802
        self.found.add(node.funcname[-1].sval)


@cache
def relations(query: str) -> frozenset[str]:
    """The tables and functions that a query names, which has numbers for its parameters."""
    visitor = _Relations()
    visitor(parse_sql(query))
    return frozenset(visitor.found)


@dataclass(frozen=True)
class Embedded:
    """A statement in the body of a function."""

    text: str
    """Without its `into`."""
    start: int
    end: int
    into: str
    """Where its answer goes; empty where it goes nowhere."""
    loops: bool
    """Whether the function goes over what it answers."""
    performs: bool
    """Whether it throws away what it answers."""


def embedded(definition: str) -> Sequence[Embedded]:
    """The statements of a function in PL/pgSQL, of which the whole definition is given, that are not expressions."""
    found: list[Embedded] = []
    for text in _texts(json.loads(parse_plpgsql_json(definition))):
        if (start := definition.find(performed := _PERFORM + text.removeprefix(_SELECT))) >= 0:
            found.append(Embedded(text, start, start + len(performed), into="", loops=False, performs=True))
            continue
        start = next(n for n in range(len(definition)) if _stands_at(definition, n, text))
        there = definition[start : start + len(text)]
        into = "".join(one for one, other in zip(there, text, strict=True) if one != other or not other.strip())
        loops = definition[:start].rstrip().endswith(" in")
        found.append(Embedded(text, start, start + len(text), " ".join(into.split()), loops, performs=False))
    return found


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        if tree.get("parseMode") == _WHOLE_STATEMENT:
            yield tree["query"]
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _texts(part)


def _stands_at(definition: str, start: int, text: str) -> bool:
    # What follows `into` is blank in the text that the parser gives.
    there = definition[start : start + len(text)]
    return len(there) == len(text) and all(one == other or other == " " for one, other in zip(there, text, strict=True))


def with_embedded(definition: str, old: Embedded, new: str) -> str:
    """The definition with another statement in the place of one, and a mark by which it is seen to be reached."""
    head, tail = definition[: old.start], definition[old.end :]
    begins = head.rindex("begin") + len("begin") if old.loops else len(head)
    return f"{head[:begins]}{_REACHED}{head[begins:]}{_as(old, new)}{tail}"


def with_embedded_first(definition: str, old: Embedded, new: str) -> str:
    """The definition with that other statement before all others: for one that nothing comes to in its place."""
    begins = definition.index("\nbegin\n") + len("\nbegin\n")
    return f"{definition[:begins]}{_REACHED}{_as(old, new)};\n{definition[begins:]}"


def _as(old: Embedded, new: str) -> str:
    if old.performs:
        return _PERFORM + new.strip().removeprefix(_SELECT)
    return f"{new} {old.into}" if old.into else new

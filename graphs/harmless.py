"""Tools that only read and need nothing outside: for the ready graphs, and for trying things out."""

import ast
import operator
from collections.abc import Callable
from typing import Any

from holdfast.contracts.errors import InvalidRequest
from holdfast.gateway.toolset import tool

_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LONGEST = 200


@tool(effect="read", idempotent=True)
def calculate(expression: str) -> str:
    """The value of a sum such as `(2 + 3) * 4`: numbers, + - * / and brackets."""
    if len(expression) > _LONGEST:
        raise InvalidRequest(f"the sum has {len(expression)} characters; {_LONGEST} are the most")
    try:
        return f"{_value(ast.parse(expression, mode='eval').body):.10g}"
    except (SyntaxError, ZeroDivisionError, OverflowError, RecursionError, ValueError) as error:
        raise InvalidRequest(f"{expression!r} has no value: {error}") from error


@tool(effect="read", idempotent=True)
def count_words(text: str) -> int:
    """How many words a text has."""
    return len(text.split())


def _value(node: Any) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            return _OPERATIONS[type(op)](_value(left), _value(right))
    raise ValueError("only numbers, + - * / and brackets are known")

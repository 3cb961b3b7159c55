"""`where`: an expression over the columns of a row, written as in Python, in pyarrow's logic, and never run as code.

A value that is not there is null; so is what is computed of a null or of values that do not go together. `and`, `or`
and `not` are Kleene's, as in pyarrow, and a row stays where the whole is true.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len, "abs": abs, "lower": str.lower, "starts_with": str.startswith, "ends_with": str.endswith,
}  # fmt: skip
_OF_TWO = {"starts_with", "ends_with"}
_NAMED = {"null": None, "true": True, "false": False}
Row = Mapping[str, Any]


def check(text: str) -> None:
    """Raises ValueError, saying what cannot be read, and what can."""
    compiled(text)


@lru_cache(maxsize=64)
def compiled(text: str) -> "Where":
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return Where(tree.body)
    except (SyntaxError, RecursionError, MemoryError) as error:  # the last one where it is nested too deeply
        told = getattr(error, "msg", None) or "it is nested too deeply"
        raise ValueError(f"{_short(text)} is no expression: {told}. {_CAN}") from error


_CAN = (
    "It is made of columns (field('..') where the name is no word), constants, + - * / %, comparisons, in, is null, "
    f"and, or, not, and the functions {', '.join(_FUNCTIONS)}"
)


class Where:
    """`columns` are the names that it reads."""

    def __init__(self, tree: ast.expr):
        self.columns: dict[str, None] = {}
        self._value = self._read(tree)

    def of(self, row: Row) -> bool | None:
        """Whether it holds; None where it has no value."""
        value = self._value(row)
        return value if isinstance(value, bool) else None

    def _read(self, tree: ast.expr) -> Callable[[Row], Any]:
        match tree:
            case ast.Constant(value=value) if isinstance(value, str | int | float | None):
                return lambda _: value
            case ast.Name(id=name) if name in _NAMED:
                return lambda _: _NAMED[name]
            case (
                ast.Name(id=name)
                | ast.Call(func=ast.Name(id="field"), args=[ast.Constant(value=str(name))], keywords=[])
            ):
                self.columns[name] = None
                return lambda row: row.get(name)
            case ast.Attribute(value=inner, attr=name):
                struct = self._read(inner)
                return lambda row: each.get(name) if isinstance(each := struct(row), dict) else None
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                values = [self._read(item) for item in items]
                return lambda row: [value(row) for value in values]
            case ast.BoolOp(op=op, values=items):
                return _kleene(isinstance(op, ast.Or), [self._read(item) for item in items])
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() as op, right=right):
                return _kleene(isinstance(op, ast.BitOr), [self._read(left), self._read(right)])
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=inner):
                truth = self._read(inner)
                return lambda row: not value if isinstance(value := truth(row), bool) else None
            case ast.UnaryOp(op=op, operand=inner) if type(op) in _OPERATORS:
                return _computed(_OPERATORS[type(op)], [self._read(inner)])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _computed(_OPERATORS[type(op)], [self._read(left), self._read(right)])
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [left, *others]
                pairs = [self._compare(*each) for each in zip(sides, ops, sides[1:], strict=False)]
                return pairs[0] if len(pairs) == 1 else _kleene(False, pairs)
            case ast.Call(func=ast.Name(id=name), args=[inner], keywords=[]) if name in ("is_null", "is_valid"):
                asked = self._read(inner)
                return lambda row: (asked(row) is None) == (name == "is_null")
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS and len(args) == 1 + (
                name in _OF_TWO
            ):
                return _computed(_FUNCTIONS[name], [self._read(arg) for arg in args])
        raise ValueError(f"{_short(ast.unparse(tree))} cannot stand in it. {_CAN}")

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Callable[[Row], Any]:
        one, other = self._read(left), self._read(right)
        if isinstance(op, ast.Is | ast.IsNot):
            is_null = isinstance(right, ast.Constant) and right.value is None
            if not is_null and not (isinstance(right, ast.Name) and right.id == "null"):
                raise ValueError(f"`is` compares with null alone, not with {_short(ast.unparse(right))}. {_CAN}")
            return lambda row: (one(row) is None) == isinstance(op, ast.Is)
        return _computed(_OPERATORS[type(op)], [one, other])


def _computed(function: Callable[..., Any], parts: list[Callable[[Row], Any]]) -> Callable[[Row], Any]:
    def value(row: Row) -> Any:
        values = [part(row) for part in parts]
        if any(each is None for each in values):
            return None
        try:
            found = function(*values)
        except (TypeError, ValueError, ArithmeticError, AttributeError, MemoryError, RecursionError):
            return None
        return None if isinstance(found, float) and math.isnan(found) else found

    return value


def _kleene(dominant: bool, parts: list[Callable[[Row], Any]]) -> Callable[[Row], Any]:
    """`or` where `dominant` is true, else `and`: one value that is dominant decides, a null leaves it open."""

    def value(row: Row) -> Any:
        is_open = False
        for part in parts:
            found = part(row)
            if found is dominant:
                return dominant
            is_open |= not isinstance(found, bool)
        return None if is_open else not dominant

    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}..")

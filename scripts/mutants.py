"""Small changes to a file of Python, one at a time: comparisons (< to <= and >=, == to !=, in, is), arithmetic (+ -,
* /, ** *, % *, // /, & |), numbers +1 and -1, True and False, and/or, `not`, minus and ~ left out, conditions negated,
`return None`, the first two arguments swapped, a keyword argument left out, break and continue swapped, and calls,
augmented assignments and raises deleted. Strings, annotations, f-strings, decorators, and the defaults of arguments and
of fields are left alone.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SWAPS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.Pow: (ast.Mult,),
    ast.Mod: (ast.Mult,), ast.FloorDiv: (ast.Div,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
    ast.Break: (ast.Continue,), ast.Continue: (ast.Break,),
}  # fmt: skip
SYMMETRIC = ("max", "min", "maximum", "minimum")
"""Functions whose first two arguments may be exchanged."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    lines: tuple[int, ...]
    """The lines of which a test must run one to notice the change."""
    start: int
    """Bytes [start, end) of the file become `text`."""
    end: int
    text: str
    constant: bool
    """Whether it changes a constant of the module rather than a function."""
    nth: int = 0
    """How many equal changes of equal lines come before it in the file."""

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    @property
    def lines_changed(self) -> tuple[str, str]:
        """The line before and the line after, each as one line."""
        source = (ROOT / self.file).read_bytes()
        first = source.rfind(b"\n", 0, self.start) + 1
        last = source.find(b"\n", self.end)
        after = source[first : self.start] + self.text.encode() + source[self.end : last]
        before, after = (" ".join(text.decode().split()) for text in (source[first:last], after))
        return before, after

    @property
    def key(self) -> str:
        """The same as long as its line is."""
        return " | ".join([self.file, *self.lines_changed, str(self.nth)])


def mutants_of(file: str) -> list[Mutant]:
    """All mutants of a file, by position."""
    source = (ROOT / file).read_bytes()
    begins = [0]
    for line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    found = []
    tree = ast.parse(source)
    for statement, node, change in _changes(tree):
        text = ast.unparse(change)
        whole = node if hasattr(statement, "body") else statement
        found.append(
            Mutant(
                file=file,
                lines=(node.lineno, *range(whole.lineno, (whole.end_lineno or whole.lineno) + 1)),
                start=begins[node.lineno - 1] + node.col_offset,
                end=begins[node.end_lineno - 1] + node.end_col_offset,
                text=f"({text})" if isinstance(node, ast.expr) else text,
                constant=statement in tree.body,
            )
        )
    seen = Counter[str]()
    for i, mutant in enumerate(sorted(found, key=lambda mutant: (mutant.start, mutant.end))):
        found[i] = replace(mutant, nth=seen[mutant.key])
        seen[mutant.key] += 1
    return found


def _changes(tree: ast.AST, statement: Any = None) -> Iterator[tuple[Any, Any, ast.AST]]:
    """Each node that can be changed, with the statement that it is in and what may stand in its place."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "defaults", "kw_defaults"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, ast.JoinedStr):
                continue
            if isinstance(tree, ast.ClassDef) and not isinstance(node, ast.FunctionDef):
                continue
            inside = node if isinstance(node, ast.stmt) else statement
            yield from ((inside, changed, change) for changed, change in _change(node))
            yield from _changes(node, inside)


def _change(node: Any) -> Iterator[tuple[ast.AST, ast.AST]]:
    match node:
        case ast.Compare():
            for i, op in enumerate(node.ops):
                for other in SWAPS[type(op)]:
                    yield node, _with(node, ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(node.op) in SWAPS:
            yield node, _with(node, op=SWAPS[type(node.op)][0]())
        case ast.UnaryOp():
            yield node, node.operand
        case ast.Constant(value=bool()):
            yield node, ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield from ((node, ast.Constant(node.value + by)) for by in (1, -1))
        case ast.Call():
            stars = any(isinstance(argument, ast.Starred) for argument in node.args[:2])
            if len(node.args) > 1 and not stars and ast.unparse(node.func).split(".")[-1] not in SYMMETRIC:
                yield node, _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
            for i in range(len(node.keywords)):
                yield node, _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
        case ast.Return(value=ast.expr()) if ast.unparse(node) != "return None":
            yield node, ast.Return(ast.Constant(None))
        case ast.Break() | ast.Continue():
            yield node, SWAPS[type(node)][0]()
    match node:
        case ast.Expr(value=ast.Constant()):
            return
        case ast.Expr() | ast.AugAssign() | ast.Raise():
            yield node, ast.Pass()
        case ast.If() | ast.While() | ast.IfExp() | ast.comprehension():
            tests = node.ifs if isinstance(node, ast.comprehension) else [node.test]
            # Comparisons and `not` have mutants of their own that say the opposite.
            yield from ((t, ast.UnaryOp(ast.Not(), t)) for t in tests if not isinstance(t, ast.Compare | ast.UnaryOp))


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed

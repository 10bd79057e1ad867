"""Which of transformers' modules are the ones that the native code stands for.

A name says nothing: a new release may change what `MixtralAttention` computes. A fingerprint is taken of what a class
does, its `forward` and the functions and methods of its own file that it calls, without comments, types and the names
of classes. Many architectures are copies of each other and share one. A class whose fingerprint is not in the tables
keeps transformers' own code.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_NOT_CALLED = {"eager_attention_forward"}  # named by every attention, called with `eager` alone


@functools.cache
def fingerprint(kind: type[nn.Module]) -> str:
    """Of what a class computes; empty where its source is not to be had."""
    try:
        parts = sorted(_sources(inspect.unwrap(kind.forward), kind, {}).items())
    except (OSError, TypeError, SyntaxError):
        return ""
    return hashlib.sha256("\n".join(source for _, source in parts).encode()).hexdigest()[:12]


def adopt(model: PreTrainedModel, mixin: type[nn.Module], table: Mapping[str, Any]) -> None:
    """Put a class before that of every module that a table knows.

    Args:
        model: changed in place; a second time changes nothing.
        mixin: its methods come before the module's own. What the table says of the module is its `known`.
        table: by fingerprint.
    """
    for module in model.modules():
        known = table.get(fingerprint(type(module)))  # type: ignore[arg-type] # mypy holds that classes have no hash
        if known is not None:
            module.__class__ = _variant(type(module), mixin, known)  # type: ignore[arg-type]


@functools.cache
def _variant(kind: type[nn.Module], mixin: type[nn.Module], known: Any) -> type[nn.Module]:
    """A class of the same name that is both."""
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__, "__doc__": mixin.__doc__, "known": known})


def _sources(function: Callable[..., Any], kind: type, found: dict[str, str]) -> dict[str, str]:
    """Name -> source of a function and of what it calls in its own file."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise TypeError(f"{function} is no ordinary function")
    found[tree.name] = ast.unparse(_Bare().visit(tree))
    names = sys.modules[function.__module__].__dict__
    for node in ast.walk(tree):
        called: Any = None
        if isinstance(node, ast.Name) and node.id not in _NOT_CALLED:
            called = inspect.unwrap(names[node.id]) if inspect.isfunction(names.get(node.id)) else None
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            called = getattr(kind, node.attr, None)
        own = inspect.isfunction(called) and called.__module__ == function.__module__
        if own and called.__name__ not in found:
            _sources(called, kind, found)
    return found


class _Bare(ast.NodeTransformer):
    """Takes out what does not run."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns, node.decorator_list = None, []
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return node
        return ast.copy_location(ast.Assign([node.target], node.value, lineno=node.lineno), node)

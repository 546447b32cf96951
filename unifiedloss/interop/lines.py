"""Find the call that makes a loss in a line of a script, as it stands there.

Assignments and what moves a loss to a device are taken off, because they change no number. What
does change the number, such as ``.mean()``, is named in an error, which says what to write instead.
"""

from __future__ import annotations

import ast

from unifiedloss.errors import SpecValueError
from unifiedloss.interop.library_loss import knows
from unifiedloss.interop.literals import check_move, dotted, source

_MEANS = {
    f"{module}.{prefix}{function}": function
    for function in ("mean", "sum")
    for prefix, modules in (
        ("", ("torch", "np", "numpy", "jnp", "jax.numpy", "keras.ops", "tf.math")),
        ("reduce_", ("tf", "tf.math")),
    )
    for module in modules
}
"""Functions that reduce the losses they are given, and the reduction of a spec that they are."""

PARTIALS = ("functools.partial", "partial")


def expression_of(tree: ast.Module) -> ast.expr | None:
    """The value of the only statement: of an expression, an assignment or a return; else None."""
    if len(tree.body) != 1:
        return None
    statement = tree.body[0]
    if isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign | ast.Return):
        return statement.value
    return None


def loss_in(node: ast.expr) -> ast.expr:
    """The call that makes the loss, without what moves it, calls it, or compiles a model with it.

    Raises:
        SpecValueError: the expression computes something with the loss.
    """
    node = _compiled_with(node)
    inner, calls = _peeled(node)
    if not calls:
        _refuse_function_of_loss(node)
        _refuse_arithmetic(node)
        return node
    if not is_loss(inner):
        return node
    for call in calls:
        if isinstance(call.func, ast.Attribute):
            check_move(call, inner)
    return inner


def _compiled_with(node: ast.expr) -> ast.expr:
    """The loss in ``model.compile(loss=...)``; a string is the name that Keras gives a loss."""
    if not isinstance(node, ast.Call):
        return node
    if not isinstance(node.func, ast.Attribute) or node.func.attr != "compile":
        return node
    given = next((each.value for each in node.keywords if each.arg == "loss"), node)
    if isinstance(given, ast.Constant) and isinstance(given.value, str):
        return ast.Name(given.value)
    return given


def _peeled(node: ast.expr) -> tuple[ast.expr, list[ast.Call]]:
    """The innermost call of a chain such as ``a().b()(c)``, and the calls around it."""
    calls = []
    while isinstance(node, ast.Call):
        around = node.func.value if isinstance(node.func, ast.Attribute) else node.func
        if not isinstance(around, ast.Call):
            break
        calls.append(node)
        node = around
    return node, calls


def is_loss(node: ast.expr) -> bool:
    """Whether the expression is a call with the name of a known loss, or a partial function."""
    if not isinstance(node, ast.Call):
        return False
    try:
        name, _ = dotted(node.func)
    except SpecValueError:
        return False
    return name in PARTIALS or name.startswith("unifiedloss.") or knows(name)


def _refuse_function_of_loss(node: ast.expr) -> None:
    """Refuse a function of the losses, such as ``tf.reduce_mean``."""
    if not isinstance(node, ast.Call) or is_loss(node) or not node.args:
        return
    inner, _ = _peeled(node.args[0])
    if not is_loss(inner):
        return
    try:
        name, _ = dotted(node.func)
    except SpecValueError:
        return
    msg = f"{name}(...) is not read: leave it out, and write {source(inner)}"
    if name in _MEANS:
        msg += f"; then .replace(reduction={_MEANS[name]!r}) of the spec reduces"
    msg += "."
    raise SpecValueError(msg)


def _refuse_arithmetic(node: ast.expr) -> None:
    """Refuse arithmetic with a loss."""
    if not isinstance(node, ast.BinOp):
        return
    for operand in (node.left, node.right):
        inner, _ = _peeled(operand)
        if is_loss(inner):
            msg = (
                f"{source(node)} computes with a loss: write {source(inner)} alone; a positive "
                "factor is the field scale of the spec."
            )
            raise SpecValueError(msg)

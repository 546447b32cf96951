"""Read the names and the literals in the text of a call. Nothing in the text is evaluated."""

from __future__ import annotations

import ast
from typing import Any

from unifiedloss.errors import SpecValueError
from unifiedloss.interop.constants import constant_of
from unifiedloss.text import quoted, shortened

_PREFIXES = {
    ("nn",): ("torch", "nn"),
    ("F",): ("torch", "nn", "functional"),
    ("torch", "nn", "modules", "loss"): ("torch", "nn"),
    ("keras", "src", "losses", "losses"): ("keras", "losses"),
    ("tensorflow",): ("tf",),
    ("tf", "keras"): ("keras",),
    ("tensorflow", "keras"): ("keras",),
    ("ul",): ("unifiedloss",),
    ("helper",): ("onnx", "helper"),
}
"""Canonical names of modules, by their common names."""

ARRAYS = frozenset(
    f"{module}.{function}"
    for modules, functions in (
        (("torch",), ("tensor", "as_tensor", "Tensor", "FloatTensor")),
        (("np", "numpy", "jnp", "jax.numpy"), ("array", "asarray")),
        (("tf",), ("constant", "convert_to_tensor")),
    )
    for module in modules
    for function in functions
)
"""Functions that make a tensor of a literal; they are read as the literal."""

_SIZED = frozenset({"torch.Tensor", "torch.FloatTensor"})
"""Those of `ARRAYS` that take a single number as a size, not as a value."""

_MOVES = frozenset({"to", "cuda", "cpu", "float", "eval", "train", "requires_grad_", "detach"})
"""Methods that change no number of a loss, or of the float32 weights that a text writes down."""

_WITHOUT_EFFECT = frozenset({"device", "requires_grad", "copy", "name"})
"""Arguments of `ARRAYS` that change no number."""


def canonical(name: str) -> str:
    """A dotted name with the canonical name of its module."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        known = _PREFIXES.get(tuple(parts[:length]))
        if known is not None:
            parts[:length] = known
            break
    return ".".join(parts)


def dotted(node: ast.expr) -> tuple[str, str | None]:
    """Return a dotted name with its module's canonical name, and the backend of ``keras[...]``."""
    parts: list[str] = []
    backend = None
    inner = node
    while True:
        if isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        elif (
            isinstance(inner, ast.Subscript)
            and backend is None
            and source(inner.value) in ("keras", "tf.keras")
        ):
            backend = _backend(inner.slice)
            inner = inner.value
        elif isinstance(inner, ast.Name):
            parts.insert(0, inner.id)
            break
        else:
            msg = (
                f"{source(node)} is no name of a loss: "
                "a call with literal arguments is read, as in "
                "torch.nn.CrossEntropyLoss(label_smoothing=0.1), and nothing is evaluated."
            )
            raise SpecValueError(msg)
    return canonical(".".join(parts)), backend


def _backend(node: ast.expr) -> str:
    name = node.id if isinstance(node, ast.Name) else getattr(node, "value", None)
    if not isinstance(name, str):
        msg = (
            f"keras[{source(node)}] names no backend; "
            "write keras[torch], keras[jax], keras[numpy] or keras[tensorflow]."
        )
        raise SpecValueError(msg)
    return name


_MOST_BITS = 1024
"""A larger integer fits in no float. Python does not even write those of 4,300 digits."""


def literal(node: ast.expr) -> Any:
    """Return the value of a literal; arrays become nested tuples."""
    value = getattr(node, "value", None)
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        msg = f"{quoted(value)} is no number that a loss takes; write a smaller one."
        raise SpecValueError(msg)
    if isinstance(node, ast.Constant) and (
        node.value is None or isinstance(node.value, bool | int | float | str)
    ):
        return node.value
    if (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub | ast.UAdd)
        and isinstance(node.operand, ast.Constant)
    ):
        number = literal(node.operand)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(literal(element) for element in node.elts)
    if isinstance(node, ast.Call) and _is_array(node.func):
        return _array(node)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Call)
    ):
        return _moved_array(node, node.func)
    if isinstance(node, ast.Attribute):
        constant = _constant(node)
        if constant is not None:
            return constant
    msg = (
        f"{source(node)} is no literal: "
        "numbers, strings, True, False, None, lists and tuples are read, also inside "
        "torch.tensor(...), np.array(...), tf.constant(...) and jnp.array(...), "
        "and nothing is evaluated; write the numbers out, or pass the loss itself, not its text."
    )
    raise SpecValueError(msg)


def _constant(node: ast.Attribute) -> Any:
    try:
        return constant_of(dotted(node)[0])
    except SpecValueError:
        return None


def _array(node: ast.Call) -> Any:
    """Return the numbers in a call that makes a tensor, such as ``torch.tensor([1.0, 2.0])``."""
    name = dotted(node.func)[0]
    given = {each.arg: each.value for each in node.keywords}
    dtypes = [given.pop("dtype")] if "dtype" in given else []
    if name.partition(".")[0] != "torch":  # torch takes a dtype by its name alone
        dtypes += node.args[1:2]
    # Refuse torch.Tensor(3): it makes three uninitialized numbers.
    sized = name in _SIZED and not isinstance(
        node.args[0] if node.args else None, ast.List | ast.Tuple
    )
    if (
        len(node.args) != (1 if name.partition(".")[0] == "torch" else 1 + len(dtypes))
        or not given.keys() <= _WITHOUT_EFFECT
        or sized
        or any(not _is_wide(dtype) for dtype in dtypes)
    ):
        msg = f"{source(node)}: write the numbers alone, as in {source(node.func)}([1.0, 2.0])."
        raise SpecValueError(msg)
    value = literal(node.args[0])
    if not _all_numbers(value):
        msg = (
            f"{source(node)} is no array of numbers; "
            f"write it as in {source(node.func)}([1.0, 2.0])."
        )
        raise SpecValueError(msg)
    return value


def _moved_array(node: ast.Call, method: ast.Attribute) -> Any:
    """Return the numbers of an array that a method moves, as in ``torch.tensor([1.0]).cuda()``."""
    value = literal(method.value)
    check_move(node, method.value)
    return value


def check_move(call: ast.Call, value: ast.expr) -> None:
    """Refuse a method that may change a number of the value that it is called on."""
    assert isinstance(call.func, ast.Attribute)
    method = call.func.attr
    given = [*call.args, *(each.value for each in call.keywords if each.arg == "dtype")]
    dtypes = [name for name in map(_dtype, given) if name is not None]
    if method == "astype" and dtypes in (["float32"], ["float64"]):
        return
    if method in _MOVES and not dtypes:
        return
    written = ", ".join(map(source, [*call.args, *call.keywords]))
    msg = f".{method}({written}) is not read: leave it out, and write {source(value)}"
    if method in ("mean", "sum"):
        msg += f"; then .replace(reduction={method!r}) of the spec reduces"
    elif dtypes or method in ("double", "half", "bfloat16", "astype"):
        msg += " with its numbers as that dtype rounds them"
    msg += "."
    raise SpecValueError(msg)


def _dtype(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if node.value in ("float32", "float64", "float16") else None
    try:
        found = constant_of(dotted(node)[0])
    except SpecValueError:
        return None
    return found if isinstance(found, str) else None


def _is_wide(node: ast.expr) -> bool:
    """Whether a dtype holds the weights of a text as they are read: float32 or float64."""
    try:
        return literal(node) in ("float32", "float64")
    except SpecValueError:
        return False


def _all_numbers(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_all_numbers, value))
    return isinstance(value, bool | int | float)


def _is_array(node: ast.expr) -> bool:
    try:
        return dotted(node)[0] in ARRAYS
    except SpecValueError:
        return False


def source(node: ast.AST) -> str:
    """The source text of a node, shortened for a message."""
    try:
        return shortened(ast.unparse(node))
    except RecursionError:
        return "this expression"

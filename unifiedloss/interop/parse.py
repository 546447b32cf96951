"""Read the text of a call that makes a loss of another library.

The text is parsed and never evaluated: a call with literal arguments is read, everything else is
refused.
"""

from __future__ import annotations

import ast
from typing import Any

from unifiedloss.errors import SpecTypeError, SpecValueError
from unifiedloss.interop.library_loss import Call, find
from unifiedloss.interop.onnx_graph import call_of_nodes
from unifiedloss.interop.onnx_nodes import node_of_arguments
from unifiedloss.text import MOST_CHARACTERS, quoted, shortened, too_long

_PREFIXES = {
    ("nn",): ("torch", "nn"),
    ("F",): ("torch", "nn", "functional"),
    ("torch", "nn", "modules", "loss"): ("torch", "nn"),
    ("tensorflow",): ("tf",),
    ("tf", "keras"): ("keras",),
    ("tensorflow", "keras"): ("keras",),
    ("ul",): ("unifiedloss",),
    ("helper",): ("onnx", "helper"),
}
"""Canonical names of modules, by their common names."""

_ARRAYS = frozenset(
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
"""Those of `_ARRAYS` that take a single number as a size, not as a value."""

_MOST_BITS = 1024
"""A larger integer fits in no float. Python does not even write those of 4,300 digits."""

_NODE = "onnx.helper.make_node"

_PARTIAL = ("functools.partial", "partial")


def parse(text: str | Any) -> Call:
    """Parse a call with a dotted name and literal arguments. Nothing in the text is evaluated.

    Args:
        text: a call such as ``torch.nn.CrossEntropyLoss(label_smoothing=0.1)``, the name of a
            function, or ``functools.partial(optax.softmax_cross_entropy, axis=1)``. The common
            names of modules are known: ``nn``, ``F``, ``tf``. Literals are numbers, strings, True,
            False, None, and lists and tuples of numbers, also inside ``torch.tensor`` and the same
            functions of other frameworks. ``keras[torch].losses...`` names the backend of Keras.

    Returns:
        The call, with the arguments as they are written. The name of a class of unifiedloss begins
        with "unifiedloss.", as in "unifiedloss.CrossEntropyLoss".

    Raises:
        SpecValueError: the text is anything else, or does not name a known loss. The message says
            what was found.
        SpecTypeError: the loss has no such argument.
    """
    if not isinstance(text, str):
        msg = f"a loss is written as a str, got {type(text).__name__}."
        raise SpecTypeError(msg)
    if len(text) > MOST_CHARACTERS:
        raise SpecValueError(too_long(text))
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, SyntaxError):
            reason = shortened(error.msg)
        else:
            reason = str(error) or "it is nested too deeply"
        msg = (
            f"{shortened(text)} is not one Python expression: {reason}. "
            "Write a call, as in torch.nn.MSELoss()."
        )
        raise SpecValueError(msg) from error
    if isinstance(tree, ast.List):
        return _nodes(tree.elts)
    if not isinstance(tree, ast.Call):
        name, backend = _dotted(tree)
        return _bound(name, [], {}, backend, called=False)
    positional = list(tree.args)
    name, backend = _dotted(tree.func)
    if name == _NODE:
        return _nodes([tree])
    called = name not in _PARTIAL
    if not called:
        if not positional:
            msg = (
                "functools.partial needs the function first, "
                "as in functools.partial(optax.l2_loss)."
            )
            raise SpecValueError(msg)
        name, backend = _dotted(positional.pop(0))
    values = [_literal(value) for value in positional]
    return _bound(name, values, _keywords(tree), backend, called=called)


def _keywords(call: ast.Call) -> dict[str, Any]:
    keywords = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            msg = f"**{_source(keyword.value)} is not read; write every argument with its name."
            raise SpecValueError(msg)
        # `ast.parse` accepts a repeated keyword; only the compiler refuses it.
        if keyword.arg in keywords:
            msg = (
                f"{_source(call.func)}: {quoted(keyword.arg)} is given twice; "
                "leave one of them out."
            )
            raise SpecTypeError(msg)
        keywords[keyword.arg] = _literal(keyword.value)
    return keywords


def _nodes(elements: list[ast.expr]) -> Call:
    """Read the call of a loss written as one ONNX node, or as a list of nodes with constants."""
    nodes = []
    for element in elements:
        if not isinstance(element, ast.Call) or _dotted(element.func)[0] != _NODE:
            msg = (
                f"{_source(element)} is no node; "
                f"a list of {_NODE}(...) is read as the nodes of a graph."
            )
            raise SpecValueError(msg)
        values = [_literal(value) for value in element.args]
        nodes.append(node_of_arguments(values, _keywords(element)))
    return call_of_nodes(nodes)


def _bound(
    name: str, positional: list[Any], keywords: dict[str, Any], backend: str | None, *, called: bool
) -> Call:
    """Return the call, its positional arguments bound to the names of the parameters."""
    if name.startswith("unifiedloss."):
        if positional or not called:
            msg = f"{name} takes its fields by name, as in {name}(reduction='sum')."
            raise SpecTypeError(msg)
        return Call(name, keywords)
    library_loss = find(name)
    if library_loss.is_class and not called:
        msg = (
            f"{library_loss.name} is a class; "
            f"write {library_loss.name}() for the loss with its defaults."
        )
        raise SpecValueError(msg)
    return Call(library_loss.name, library_loss.bind(positional, keywords), backend)


def _dotted(node: ast.expr) -> tuple[str, str | None]:
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
            and _source(inner.value) in ("keras", "tf.keras")
        ):
            backend = _backend(inner.slice)
            inner = inner.value
        elif isinstance(inner, ast.Name):
            parts.insert(0, inner.id)
            break
        else:
            msg = (
                f"{_source(node)} is no name of a loss: "
                "a call with literal arguments is read, as in "
                "torch.nn.CrossEntropyLoss(label_smoothing=0.1), and nothing is evaluated."
            )
            raise SpecValueError(msg)
    for length in range(len(parts) - 1, 0, -1):
        known = _PREFIXES.get(tuple(parts[:length]))
        if known is not None:
            parts[:length] = known
            break
    return ".".join(parts), backend


def _backend(node: ast.expr) -> str:
    name = node.id if isinstance(node, ast.Name) else getattr(node, "value", None)
    if not isinstance(name, str):
        msg = (
            f"keras[{_source(node)}] names no backend; "
            "write keras[torch], keras[jax], keras[numpy] or keras[tensorflow]."
        )
        raise SpecValueError(msg)
    return name


def _literal(node: ast.expr) -> Any:
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
        number = _literal(node.operand)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_literal(element) for element in node.elts)
    if isinstance(node, ast.Call) and _is_array(node.func):
        return _array(node)
    msg = (
        f"{_source(node)} is no literal: "
        "numbers, strings, True, False, None, lists and tuples are read, also inside "
        "torch.tensor(...), np.array(...), tf.constant(...) and jnp.array(...), "
        "and nothing is evaluated."
    )
    raise SpecValueError(msg)


def _array(node: ast.Call) -> Any:
    """Return the numbers in a call that makes a tensor, such as ``torch.tensor([1.0, 2.0])``."""
    # Refuse torch.Tensor(3): it makes three uninitialized numbers.
    sized = _dotted(node.func)[0] in _SIZED and not isinstance(
        node.args[0] if node.args else None, ast.List | ast.Tuple
    )
    if len(node.args) != 1 or node.keywords or sized:
        msg = f"{_source(node)}: write the numbers alone, as in {_source(node.func)}([1.0, 2.0])."
        raise SpecValueError(msg)
    value = _literal(node.args[0])
    if not _all_numbers(value):
        msg = (
            f"{_source(node)} is no array of numbers; "
            f"write it as in {_source(node.func)}([1.0, 2.0])."
        )
        raise SpecValueError(msg)
    return value


def _all_numbers(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_all_numbers, value))
    return isinstance(value, bool | int | float)


def _is_array(node: ast.expr) -> bool:
    try:
        return _dotted(node)[0] in _ARRAYS
    except SpecValueError:
        return False


def _source(node: ast.AST) -> str:
    try:
        return shortened(ast.unparse(node))
    except RecursionError:
        return "this expression"

"""Read the text of a call that makes a loss of another library.

The text is parsed and never evaluated: a call with literal arguments is read, everything else is
refused.
"""

from __future__ import annotations

import ast
from typing import Any

from unifiedloss.errors import SpecTypeError, SpecValueError
from unifiedloss.interop.keras import CHOSEN_BY_SHAPE, STRINGS
from unifiedloss.interop.library_loss import Call, find
from unifiedloss.interop.lines import PARTIALS, expression_of, loss_in
from unifiedloss.interop.literals import dotted, literal, source
from unifiedloss.interop.onnx_graph import call_of_nodes
from unifiedloss.interop.onnx_nodes import node_of_arguments
from unifiedloss.losses import ROWS
from unifiedloss.text import MOST_CHARACTERS, quoted, shortened, too_long

_NODE = "onnx.helper.make_node"

FUNCTIONS = {f"unifiedloss.{row.function}": f"unifiedloss.{row.spec}" for row in ROWS}
"""The names of our functions, and of the classes whose specs they evaluate."""


def parse(text: str | Any) -> Call:
    """Parse a call with a dotted name and literal arguments. Nothing in the text is evaluated.

    Args:
        text: a call such as ``torch.nn.CrossEntropyLoss(label_smoothing=0.1)``, the name of a
            function, or ``functools.partial(optax.softmax_cross_entropy, axis=1)``. The common
            names of modules are known: ``nn``, ``F``, ``tf``. Literals are numbers, strings, True,
            False, None, and lists and tuples of numbers, also inside ``torch.tensor`` and the same
            functions of other frameworks. ``keras[torch].losses...`` names the backend of Keras.
            An assignment, the tensors of a call, ``.to(device)`` and ``.cuda()`` are left out. The
            name alone of a loss that Keras' ``compile`` takes, such as "mse", is read as well.

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
        tree = expression_of(ast.parse(text.strip()))
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
    if tree is None:
        msg = (
            f"{shortened(text)} is not one Python expression: write the line of one loss, as in "
            "torch.nn.MSELoss()."
        )
        raise SpecValueError(msg)
    tree = loss_in(tree)
    if isinstance(tree, ast.Name) and (tree.id in STRINGS or tree.id.lower() in CHOSEN_BY_SHAPE):
        return call_of_string(tree.id)
    if isinstance(tree, ast.List):
        return _nodes(tree.elts)
    if not isinstance(tree, ast.Call):
        name, backend = dotted(tree)
        return bound(name, [], {}, backend, called=False)
    positional = list(tree.args)
    name, backend = dotted(tree.func)
    if name == _NODE:
        return _nodes([tree])
    called = name not in PARTIALS
    if not called:
        if not positional:
            msg = (
                "functools.partial needs the function first, "
                "as in functools.partial(optax.l2_loss)."
            )
            raise SpecValueError(msg)
        name, backend = dotted(positional.pop(0))
        return bound(
            name, [literal(x) for x in positional], _keywords(tree, ()), backend, called=called
        )
    if not name.startswith("unifiedloss."):
        find(name)  # a name that is not known matters more than what stands in the call
    tensors = _tensors_of(name)
    if tensors:
        positional = _without_tensors(positional)
    values = [literal(value) for value in positional]
    return bound(name, values, _keywords(tree, tensors), backend, called=called)


def _tensors_of(name: str) -> tuple[str, ...]:
    """The parameters for tensors of a function with this name; none for a class."""
    if name in FUNCTIONS:
        return ("predictions", "targets", "sample_weight", "mask")
    if name.startswith("unifiedloss.") or find(name).is_class:
        return ()
    return find(name).data


def _without_tensors(positional: list[ast.expr]) -> list[ast.expr]:
    """Leave out the two tensors that a function is called with, if they are no literals."""
    if any(_is_literal(node) for node in positional[:2]):
        return positional
    rest = positional[2:]
    if rest:
        msg = (
            f"{source(rest[0])} stands behind the two tensors: write it with its name, as in "
            "reduction='sum', so that it can be told which argument it is."
        )
        raise SpecValueError(msg)
    return rest


def _is_literal(node: ast.expr) -> bool:
    if isinstance(node, ast.Starred):
        return True
    try:
        literal(node)
    except SpecValueError:
        return False
    return True


def _keywords(call: ast.Call, tensors: tuple[str, ...]) -> dict[str, Any]:
    """The keyword arguments of a call, without the tensors that a script gives it by a name."""
    keywords = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            msg = f"**{source(keyword.value)} is not read; write every argument with its name."
            raise SpecValueError(msg)
        # `ast.parse` accepts a repeated keyword; only the compiler refuses it.
        if keyword.arg in keywords:
            msg = (
                f"{source(call.func)}: {quoted(keyword.arg)} is given twice; leave one of them out."
            )
            raise SpecTypeError(msg)
        if keyword.arg not in tensors or _is_literal(keyword.value):
            keywords[keyword.arg] = literal(keyword.value)
    return keywords


def _nodes(elements: list[ast.expr]) -> Call:
    """Read the call of a loss written as one ONNX node, or as a list of nodes with constants."""
    nodes = []
    for element in elements:
        if not isinstance(element, ast.Call) or dotted(element.func)[0] != _NODE:
            msg = (
                f"{source(element)} is no node; "
                f"a list of {_NODE}(...) is read as the nodes of a graph."
            )
            raise SpecValueError(msg)
        values = [literal(value) for value in element.args]
        nodes.append(node_of_arguments(values, _keywords(element, ())))
    return call_of_nodes(nodes)


def call_of_string(name: str) -> Call:
    """Return the loss that ``compile(loss=name)`` of Keras makes.

    Raises:
        SpecValueError: Keras has no loss of this name, or chooses one by the shapes of a call.
    """
    if name.lower() in CHOSEN_BY_SHAPE:
        msg = (
            f"Keras chooses the loss {name!r} by the shapes of a call; write 'binary_crossentropy',"
            " 'categorical_crossentropy' or 'sparse_categorical_crossentropy'."
        )
        raise SpecValueError(msg)
    return Call(STRINGS[name])


def bound(
    name: str, positional: list[Any], keywords: dict[str, Any], backend: str | None, *, called: bool
) -> Call:
    """Return the call, its positional arguments bound to the names of the parameters."""
    name = FUNCTIONS.get(name, name)
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

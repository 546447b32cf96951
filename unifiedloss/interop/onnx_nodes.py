"""The nodes of an ONNX graph as plain Python values, and which of them change no number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from unifiedloss.errors import SpecTypeError, SpecValueError
from unifiedloss.text import quoted, shortened

_NO_ATTRIBUTES = ("op_type", "inputs", "outputs", "name", "doc_string", "domain")

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
"""ONNX's numbers for the dtypes of numbers."""

_SMALLEST_SINCE_AXIS = 13
"""From this version on, a softmax runs along its axis alone. Before, it flattened all later axes
into one."""


class Node(NamedTuple):
    """A node of a graph.

    Attributes:
        operator: the operator, with its domain if it is not one of the standard's.
        inputs: the names of its inputs; "" for one that is left out.
        outputs: the names of its outputs; "" for one that is left out.
        attributes: its attributes as Python values.
        name: its name; "" if it has none.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    name: str = ""

    def __str__(self) -> str:
        """The node in a message: its operator, and its name or the name of its output."""
        names = [self.name] if self.name else [name for name in self.outputs if name][:1]
        return " ".join([shortened(self.operator), *(repr(shortened(name)) for name in names)])

    def input(self, place: int) -> str:
        """The name of an input; "" if it is left out."""
        return self.inputs[place] if place < len(self.inputs) else ""


class Tensor(NamedTuple):
    """What is known of a tensor without running the graph.

    Attributes:
        dtype: the name of its dtype, or None.
        shape: its extents, None for each that is unknown; None if its rank is unknown too.
    """

    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None

    @property
    def rank(self) -> int | None:
        """The number of axes, or None."""
        return None if self.shape is None else len(self.shape)


class Unproven(Exception):  # noqa: N818 - no error, but an answer
    """A node may change its input. The message is the reason, as the end of a sentence."""


def passed(node: Node, tensor: Tensor, constants: Mapping[str, Any]) -> Tensor:
    """The output of a node that gives its first input unchanged.

    Only the dtype of integers may change, to one that holds all of them.

    Args:
        node: the node.
        tensor: what is known of its first input.
        constants: the values of constants, by name.

    Raises:
        Unproven: the node changes its input, or it is not known that it does not.
    """
    check = PASSING.get(node.operator)
    if check is None:
        msg = "no spec computes it"
        raise Unproven(msg)
    return check(node, tensor, constants) or tensor


def _constant(name: str, constants: Mapping[str, Any], what: str) -> Any:
    if name not in constants:
        msg = f"{what} is not written in the graph"
        raise Unproven(msg)
    value = constants[name]
    return value if isinstance(value, tuple) else (value,)


def _cast(node: Node, tensor: Tensor, _: Mapping[str, Any]) -> Tensor:
    to = DTYPES.get(node.attributes.get("to", 0))
    if tensor.dtype is None:
        msg = "the dtype of its input is not declared"
    elif to == tensor.dtype or _widens(tensor.dtype, to):
        return Tensor(to, tensor.shape)
    else:
        msg = f"it rounds {tensor.dtype} to {to}, or changes the dtype of the loss"
    raise Unproven(msg)


def _widens(source: str, target: str | None) -> bool:
    """Whether one integer dtype holds all numbers of another."""
    if target is None or "int" not in source or "int" not in target:
        return False
    bits = [int(name.rpartition("int")[2]) for name in (source, target)]
    signed = [not name.startswith("u") for name in (source, target)]
    return bits[0] < bits[1] and (signed[1] or not signed[0])


def _dropout(node: Node, _: Tensor, constants: Mapping[str, Any]) -> None:
    if node.input(2) and any(_constant(node.input(2), constants, "its training_mode")):
        msg = "with training_mode=True it drops numbers at random"
        raise Unproven(msg)


def _transpose(node: Node, tensor: Tensor, _: Mapping[str, Any]) -> None:
    order = node.attributes.get("perm")
    if order is None:
        order = None if tensor.rank is None else tuple(reversed(range(tensor.rank)))
    if not isinstance(order, tuple) or order != tuple(range(len(order))):
        msg = "it moves axes; leave it out, and name the class axis with axis=... in the spec"
        raise Unproven(msg)


def _flatten(node: Node, tensor: Tensor, _: Mapping[str, Any]) -> None:
    if tensor.rank != 2 or node.attributes.get("axis", 1) not in (1, -1):
        msg = "it leaves only a tensor with 2 declared axes as it is, and only with axis=1"
        raise Unproven(msg)


def _reshape(node: Node, tensor: Tensor, constants: Mapping[str, Any]) -> None:
    shape = _constant(node.input(1), constants, "the new shape")
    known = tensor.shape
    keeps = 0 if node.attributes.get("allowzero", 0) == 0 else None
    if known is None or len(shape) != len(known):
        same = False
    else:
        open_ = [new for new, old in zip(shape, known, strict=True) if new not in (keeps, old)]
        # One extent of -1 follows from the others, if none of them changes.
        same = open_ in ([], [-1])
    if not same:
        msg = f"it is not known that {shortened(str(tuple(shape)))} is the shape of its input"
        raise Unproven(msg)


def _squeeze(_node: Node, tensor: Tensor, _: Mapping[str, Any]) -> None:
    if tensor.shape is None or any(extent in (None, 1) for extent in tensor.shape):
        msg = "it may remove an axis"
        raise Unproven(msg)


PASSING: dict[str, Callable[[Node, Tensor, Mapping[str, Any]], Tensor | None]] = {
    "Identity": lambda *_: None,
    "Cast": _cast,
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
}
"""The operators that can give their first input unchanged."""


def along_classes(node: Node, tensor: Tensor, opset: int | None) -> None:
    """Check that a Softmax or LogSoftmax runs along axis 1, the class axis of ONNX's losses.

    Args:
        node: the node.
        tensor: what is known of its input.
        opset: the version of the operators; None for the current one.

    Raises:
        Unproven: it runs along another axis, or that is not known.
    """
    current = opset is None or opset >= _SMALLEST_SINCE_AXIS
    axis = node.attributes.get("axis", -1 if current else 1)
    if current and axis == 1:
        return
    if tensor.rank is None:
        msg = f"with axis={axis} it needs predictions whose rank the graph declares"
    elif axis not in (1, 1 - tensor.rank):
        msg = f"it runs along axis {axis}, and the loss has its classes on axis 1"
    elif not current and tensor.rank != 2:
        msg = f"in opset {opset} it flattens all axes from {axis} on; convert the model to opset 13"
    else:
        return
    raise Unproven(msg)


def check_reduces_all(node: Node, losses: Tensor, constants: Mapping[str, Any]) -> None:
    """Check that a ReduceMean or a ReduceSum gives one number without axes.

    Args:
        node: the node.
        losses: what is known of its input.
        constants: the values of constants, by name.

    Raises:
        Unproven: it does not, or that is not known; its arguments are the reason and what to do.
    """
    axes = node.attributes.get("axes")
    if node.input(1):
        axes = constants.get(node.input(1), ("unknown",)) or ("unknown",)
    rank = losses.rank
    whole = axes is None or (
        rank is not None
        and rank > 0
        and isinstance(axes, tuple)
        and all(type(axis) is int for axis in axes)
        and {axis % rank for axis in axes} == set(range(rank))
    )
    if not whole:
        why = "it is not known to reduce every axis"
        raise Unproven(why, "leave its axes out")
    if node.attributes.get("keepdims", 1) != 0 or node.attributes.get("noop_with_empty_axes"):
        why = "it gives the loss more axes than a spec does"
        raise Unproven(why, "give it keepdims=0")


def node_of_arguments(positional: Sequence[Any], keywords: Mapping[str, Any]) -> Node:
    """The node that ``onnx.helper.make_node`` makes from these arguments.

    Raises:
        SpecValueError: the arguments are not an operator, names of inputs and names of outputs.
        SpecTypeError: an argument is given twice.
    """
    given = dict(zip(("op_type", "inputs", "outputs"), positional, strict=False))
    for key in given.keys() & keywords.keys():
        msg = f"onnx.helper.make_node: {quoted(key)} is given twice; leave one of them out."
        raise SpecTypeError(msg)
    values = given | dict(keywords)
    attributes = {key: value for key, value in values.items() if key not in _NO_ATTRIBUTES}
    operator, inputs, outputs = (values.get(key) for key in ("op_type", "inputs", "outputs"))
    name, domain = values.get("name") or "", values.get("domain") or ""
    if (
        len(positional) > 3
        or not all(isinstance(text, str) for text in (operator, name, domain))
        or not _names(inputs)
        or not _names(outputs)
    ):
        msg = (
            "onnx.helper.make_node needs an operator, the names of its inputs and those of its "
            "outputs, as in "
            'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["scores", "labels"], ["loss"]).'
        )
        raise SpecValueError(msg)
    known: Any = (inputs, outputs, attributes, name)
    return Node(qualified(operator, domain), *known)


def qualified(operator: Any, domain: str) -> str:
    """The name of an operator, with its domain if it is not one of the standard's."""
    return str(operator) if domain in ("", "ai.onnx") else f"{domain}.{operator}"


def _names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)

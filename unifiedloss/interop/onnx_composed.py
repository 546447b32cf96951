"""Read an ONNX graph of plain operators as the squared error or the binary cross-entropy.

Exporters write these losses as differences, products, logarithms and a mean, each in its own way.
So the graph is not compared with patterns. Its output is computed as a polynomial of the inputs and
of functions of them, and the loss is the one whose polynomial is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple, NoReturn

from unifiedloss.errors import SpecTypeError, UnsupportedError
from unifiedloss.interop.lens import pair
from unifiedloss.interop.library_loss import Call, LibraryLoss, register_read
from unifiedloss.interop.onnx import INPUTS
from unifiedloss.interop.onnx_nodes import (
    PASSING,
    Node,
    Tensor,
    Unproven,
    check_reduces_all,
    passed,
)
from unifiedloss.interop.onnx_parts import Constants, Graph, Reading, makers_of, outputs_of
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.text import shortened

Atom = tuple[str, str]
"""A function of an input, and the input's name. The function "" is the input itself."""

Polynomial = Mapping[tuple[Atom, ...], Fraction]
"""The coefficient of each product of atoms; none of them is 0."""

_MOST_TERMS, _HIGHEST_DEGREE, _LARGEST = 32, 4, 2**100
"""No loss here has a polynomial with more, or with larger or smaller coefficients.

The limits bound the time that a graph takes, and its own floats do not overflow within them.
"""

_REDUCTIONS = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceSumSquare": "sum"}

_CLAMP = Fraction(-100)
"""The least logarithm of torch.nn.BCELoss."""


class Value(NamedTuple):
    """What a node gives.

    Attributes:
        polynomial: what it computes for an element.
        reduction: how the elements were reduced; "none" before that.
        tensor: what is known of the tensor.
    """

    polynomial: Polynomial
    reduction: str
    tensor: Tensor

    @property
    def constant(self) -> Fraction | None:
        """The number, if it is one."""
        if self.polynomial.keys() <= {()}:
            return self.polynomial.get((), Fraction(0))
        return None


def read_composed(graph: Graph) -> Reading:
    """The squared error or the binary cross-entropy that a graph of other operators computes.

    Raises:
        SpecTypeError: it computes neither, or that is not known. The message names the node.
        UnsupportedError: it computes one with a factor or a weight that a spec refuses.
    """
    return _Composed(graph).read()


class _Composed:
    """Computes the polynomial of one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._makers = makers_of(graph)
        self._constants = Constants(graph)
        self._values: dict[str, Value] = {}
        self._shapes: set[str] = set()
        """The names of shapes: all are that of the predictions and targets, which a spec needs."""

    def read(self) -> Reading:
        """See `read_composed`."""
        outputs = self._graph.outputs
        outputs = outputs_of(self._graph.nodes) if outputs is None else outputs
        if len(outputs) != 1:
            names = shortened(", ".join(map(repr, outputs))) or "none"
            self._refuse(f"the outputs of the graph are {names}, and a loss has one")
        needed = self._needed(outputs[0])
        for place in sorted(needed):
            node = self._graph.nodes[place]
            if node.operator == "Constant":
                continue
            try:
                if node.operator == "Shape":
                    self._elements(node)
                    self._shapes.add(node.outputs[0])
                else:
                    self._values[node.outputs[0]] = self._value(node)
            except Unproven as why:
                self._refuse(f"{node} is no part of them, because {why.args[0]}")
        value = self._of(outputs[0])
        read = {name for product in value.polynomial for _, name in product}
        if len(read) != 2:
            inputs = shortened(", ".join(map(repr, sorted(read)))) or "no input"
            self._refuse(f"the output depends on {inputs}, and a loss on predictions and targets")
        for predictions, targets in _orders(read, value.polynomial):
            call = _recognized(value, predictions, targets)
            if call is not None:
                return Reading(call, predictions, targets, outputs[0], frozenset(needed))
        return self._refuse("together they compute something else")

    def _needed(self, output: str) -> set[int]:
        """The places of the nodes that the output depends on."""
        needed: set[int] = set()
        open_ = [output]
        while open_:
            place = self._makers.get(open_.pop())
            if place is not None and place not in needed:
                needed.add(place)
                open_ += [name for name in self._graph.nodes[place].inputs if name]
        return needed

    def _refuse(self, why: str) -> NoReturn:
        operators = ", ".join(dict.fromkeys(node.operator for node in self._graph.nodes))
        msg = (
            f"one node is needed of {' or '.join(INPUTS)}, or nodes that together are the squared "
            f"error or the binary cross-entropy; the nodes are {shortened(operators)}, and {why}. "
            "Write the loss as a spec, such as ul.MeanSquaredError()."
        )
        raise SpecTypeError(msg)

    # ------------------------------------------------------------------------- what a node gives

    def _of(self, name: str) -> Value:
        """What a name stands for: a result, a constant number or an input."""
        if name in self._values:
            return self._values[name]
        if name in self._shapes:
            _unproven("it computes with a shape")
        if name in self._constants:
            return Value(_number(self._constants[name], name), "none", Tensor())
        known = self._graph.inputs
        if known is not None and name not in known:
            _unproven(f"its input {shortened(name)!r} is no input and no result of the graph")
        tensor = Tensor() if known is None else known[name]
        return Value({(("", name),): Fraction(1)}, "none", tensor)

    def _value(self, node: Node) -> Value:
        if any(node.outputs[1:]):
            _unproven("it has a second output")
        if node.operator in PASSING:
            value = self._of(node.input(0))
            return value._replace(tensor=passed(node, value.tensor, self._constants))
        if node.operator in _REDUCTIONS:
            return self._reduced(node)
        if node.operator == "ConstantOfShape" and node.input(0) in self._shapes:
            number = _number(node.attributes.get("value", 0.0), node.outputs[0])
            return Value(number, "none", Tensor())
        if node.operator == "Expand" and node.input(1) in self._shapes:
            return self._elements(node)
        if node.attributes:
            _unproven(f"it has the attributes {shortened(', '.join(node.attributes))}")
        values = [self._of(name) for name in node.inputs if name]
        if node.operator in _LINEAR:
            count, compute = _LINEAR[node.operator]
            if len(values) != count:
                _unproven(f"it has {len(values)} inputs")
            return _joined(compute(*(each.polynomial for each in values)), values)
        if node.operator in ("Mul", "Div", "Pow") and len(values) == 2:
            return _product(node.operator, *values)
        if node.operator in _FUNCTIONS and values and values[0].reduction == "none":
            numbers = [each.constant for each in values[1:]]
            found = _FUNCTIONS[node.operator](values[0].polynomial, *numbers)
            if found is not None:
                return values[0]._replace(polynomial=found)
        return _unproven("no such loss has it there")

    def _elements(self, node: Node) -> Value:
        """The first input, whose shape is that of the predictions."""
        value = self._of(node.input(0))
        if value.reduction != "none" or value.constant is not None or node.attributes:
            _unproven("its input is not known to have the shape of the predictions")
        return value

    def _reduced(self, node: Node) -> Value:
        value = self._of(node.input(0))
        if value.reduction != "none" or value.constant is not None:
            _unproven("it reduces what has no elements")
        try:
            check_reduces_all(node, value.tensor, self._constants)
        except Unproven as why:
            _unproven(f"{why.args[0]}; {why.args[1]}")
        polynomial = value.polynomial
        if node.operator == "ReduceSumSquare":
            polynomial = _times(polynomial, polynomial)
        tensor = Tensor(value.tensor.dtype, ())
        return Value(polynomial, _REDUCTIONS[node.operator], tensor)


def _unproven(why: str) -> NoReturn:
    raise Unproven(why)


def _number(value: Any, name: str) -> Polynomial:
    """A constant of one number, without axes or with one."""
    if isinstance(value, tuple) and len(value) == 1:
        (value,) = value
    if type(value) not in (int, float) or not math.isfinite(value):
        _unproven(f"the constant {shortened(name)!r} is not one finite number")
    return _reduced_terms({(): Fraction(value)})


def _joined(polynomial: Polynomial, values: list[Value]) -> Value:
    """A sum of values: all of them are elements, or all are reduced alike, or they are numbers."""
    rest = [each for each in values if each.constant is None]
    reductions = {each.reduction for each in rest}
    if len(reductions) > 1 or (reductions - {"none"} and len(rest) < len(values)):
        _unproven("it adds what is reduced to what is not, or a number to the result")
    shapes = {each.tensor for each in rest}
    tensor = rest[0].tensor if len(shapes) == 1 else Tensor()
    (reduction,) = reductions or {"none"}
    return Value(polynomial, reduction, tensor)


def _product(operator: str, a: Value, b: Value) -> Value:
    first, second = a.constant, b.constant
    if operator == "Pow":
        if second not in (1, 2) or a.reduction != "none":
            _unproven("its exponent is not the constant 2")
        return a if second == 1 else a._replace(polynomial=_times(a.polynomial, a.polynomial))
    if operator == "Div":
        if not second or first is not None:  # integers would be divided without a remainder
            _unproven("it divides by what is no constant number, or a constant")
        return a._replace(polynomial=_times(a.polynomial, {(): 1 / second}))
    if first is None and second is None and {a.reduction, b.reduction} != {"none"}:
        _unproven("it multiplies what is reduced")
    rest = [each for each in (a, b) if each.constant is None] or [a]
    tensor = rest[0].tensor if len({each.tensor for each in rest}) == 1 else Tensor()
    return Value(_times(a.polynomial, b.polynomial), rest[0].reduction, tensor)


# ------------------------------------------------------------------------------------ polynomials


def _reduced_terms(terms: Mapping[tuple[Atom, ...], Fraction]) -> Polynomial:
    """The terms whose coefficients are not 0."""
    found = {product: factor for product, factor in terms.items() if factor}
    if (
        len(found) > _MOST_TERMS
        or max(map(len, found), default=0) > _HIGHEST_DEGREE
        or not all(1 < abs(factor) * _LARGEST < _LARGEST**2 for factor in found.values())
    ):
        _unproven("no such loss has so many terms, or such numbers")
    return found


def _plus(a: Polynomial, b: Polynomial) -> Polynomial:
    return _reduced_terms({p: a.get(p, Fraction(0)) + b.get(p, Fraction(0)) for p in {**a, **b}})


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    terms: dict[tuple[Atom, ...], Fraction] = {}
    for p, m in a.items():
        for q, n in b.items():
            product = tuple(sorted((*p, *q)))
            terms[product] = terms.get(product, Fraction(0)) + m * n
    return _reduced_terms(terms)


def _negative(a: Polynomial) -> Polynomial:
    return {product: -factor for product, factor in a.items()}


def _atom(function: str, name: str, factor: int = 1) -> Polynomial:
    return {((function, name),): Fraction(factor)}


def _sum(*polynomials: Polynomial) -> Polynomial:
    total: Polynomial = {}
    for each in polynomials:
        total = _plus(total, each)
    return total


_LINEAR: dict[str, tuple[int, Callable[..., Polynomial]]] = {
    "Add": (2, _plus),
    "Sub": (2, lambda a, b: _plus(a, _negative(b))),
    "Neg": (1, _negative),
}
"""The number of inputs of an operator, and what it computes."""


def _single(a: Polynomial) -> tuple[str, str, Fraction] | None:
    """The function, the input and the factor of a polynomial that is one atom; else None."""
    if len(a) != 1:
        return None
    ((product, factor),) = a.items()
    return (*product[0], factor) if len(product) == 1 else None


# The functions of logits x are written with x, max(x, 0) and L = log(sigmoid(x)), of which no two
# depend on each other in a linear way: log(1 - sigmoid(x)) = L - x, and log(1 + exp(x)) = x - L.


def _sigmoid(a: Polynomial) -> Polynomial | None:
    match _single(a):
        case ("", name, 1):
            return _atom("sigmoid", name)
        case ("", name, -1):
            return _plus({(): Fraction(1)}, _atom("sigmoid", name, -1))
    return None


def _softplus(a: Polynomial) -> Polynomial | None:
    match _single(a):
        case ("", name, 1):
            return _plus(_atom("", name), _atom("log sigmoid", name, -1))
        case ("", name, -1):
            return _atom("log sigmoid", name, -1)
        case ("abs", name, -1):
            return _sum(_atom("", name), _atom("log sigmoid", name, -1), _atom("max 0", name, -1))
    return None


def _exp(a: Polynomial) -> Polynomial | None:
    match _single(a):
        case ("" | "abs" as function, name, (1 | -1) as sign):
            return _atom(f"exp {'-' if sign < 0 else ''}{function}", name)
    return None


def _log(a: Polynomial) -> Polynomial | None:
    match _single(a):
        case ("sigmoid", name, 1):
            return _atom("log sigmoid", name)
        case ("", name, 1):
            return _atom("log", name)
    rest = _plus(a, {(): Fraction(-1)})  # the logarithm is that of 1 + rest
    match _single(rest):
        case ("sigmoid", name, -1):
            return _plus(_atom("log sigmoid", name), _atom("", name, -1))
        case ("", name, -1):
            return _atom("log 1-", name)
        case (function, name, 1) if function.startswith("exp "):
            sign = -1 if "-" in function else 1
            return _softplus(_atom(function[4:].lstrip("-"), name, sign))
    return None


def _absolute(a: Polynomial) -> Polynomial | None:
    match _single(a):
        case ("", name, 1 | -1):
            return _atom("abs", name)
    return None


def _max(a: Polynomial, bound: Fraction | None = None, *more: object) -> Polynomial | None:
    match _single(a):
        case ("", name, 1) if bound == 0 and not more:
            return _atom("max 0", name)
        case ("log" | "log 1-" as function, name, 1) if bound == _CLAMP and not more:
            return _atom(f"clamped {function}", name)
    return None


def _clip(
    a: Polynomial, low: Fraction | None = None, high: Fraction | None = None
) -> Polynomial | None:
    return _max(a, low) if high is None else None


_FUNCTIONS: dict[str, Callable[..., Polynomial | None]] = {
    "Sigmoid": _sigmoid,
    "Softplus": _softplus,
    "Exp": _exp,
    "Log": _log,
    "Abs": _absolute,
    "Relu": lambda a: _max(a, Fraction(0)),
    "Max": _max,
    "Clip": _clip,
}
"""What an operator gives for the polynomial of its first input and the numbers of the others."""


# ----------------------------------------------------------------------------------------- losses


def _orders(names: set[str], polynomial: Polynomial) -> list[tuple[str, str]]:
    """The two inputs as predictions and targets, in both orders.

    The squared error is the same in both. It takes the one that stands first in the graph.
    """
    order = list(dict.fromkeys(name for product in polynomial for _, name in product))
    first, second = sorted(names, key=order.index)
    return [(first, second), (second, first)]


def _recognized(value: Value, x: str, t: str) -> Call | None:
    """The call of the loss whose polynomial this is, with x as predictions and t as targets."""
    polynomial = dict(value.polynomial)
    target = ("", t)
    scale = polynomial.get(tuple(sorted((target, target))), Fraction(0))
    if scale and polynomial == _scaled(_squared_error(x, t), scale):
        return _call("MeanSquaredError", value, scale)
    log = ("log sigmoid", x)
    scale = polynomial.get((("", x),), Fraction(0))
    if scale:
        q = _quotient(polynomial, log, target, scale)
        if polynomial == _scaled(_of_logits(x, t, q), scale):
            return _call("BinaryCrossEntropy", value, scale, from_logits=True, pos_weight=q)
    for clamped in ("", "clamped "):
        yes, no = (f"{clamped}log", x), (f"{clamped}log 1-", x)
        scale = -polynomial.get((no,), Fraction(0))
        if scale:
            q = -polynomial.get(tuple(sorted((target, yes))), Fraction(0)) / scale
            if polynomial == _scaled(_of_probabilities(yes, no, target, q), scale):
                epsilon = "torch" if clamped else 0.0
                return _call("BinaryCrossEntropy", value, scale, pos_weight=q, epsilon=epsilon)
    return None


def _quotient(
    polynomial: Mapping[tuple[Atom, ...], Fraction], log: Atom, target: Atom, scale: Fraction
) -> Fraction:
    return 1 - polynomial.get(tuple(sorted((log, target))), Fraction(0)) / scale


def _squared_error(x: str, t: str) -> Polynomial:
    error = _plus(_atom("", x), _atom("", t, -1))
    return _times(error, error)


def _of_logits(x: str, t: str, q: Fraction) -> Polynomial:
    """The binary cross-entropy -(q t L + (1 - t) (L - x))."""
    log = _atom("log sigmoid", x)
    yes = _times(_times(_atom("", t), log), {(): q})
    no = _times(_plus({(): Fraction(1)}, _atom("", t, -1)), _plus(log, _negative(_atom("", x))))
    return _negative(_plus(yes, no))


def _of_probabilities(yes: Atom, no: Atom, target: Atom, q: Fraction) -> Polynomial:
    """The binary cross-entropy -(q t log p + (1 - t) log(1 - p))."""
    t: Polynomial = {(target,): Fraction(1)}
    positive = _times(_times(t, {(yes,): Fraction(1)}), {(): q})
    negative = _times(_plus({(): Fraction(1)}, _negative(t)), {(no,): Fraction(1)})
    return _negative(_plus(positive, negative))


def _scaled(a: Polynomial, scale: Fraction) -> Polynomial:
    return {product: factor * scale for product, factor in a.items()}


def _call(loss: str, value: Value, scale: Fraction, **arguments: Any) -> Call:
    if scale < 0:
        msg = f"the graph computes the negative of a {loss}; negate what the spec gives."
        raise UnsupportedError(msg)
    if "pos_weight" in arguments:
        q = arguments["pos_weight"]
        arguments["pos_weight"] = None if q == 1 else float(q)
    name = f"onnx.graph of {loss}"
    given = {"reduction": value.reduction, "scale": float(scale), **arguments}
    return Call(name, _COMPOSED[name].bind([], given))


def _library_loss(name: str, fixed: Any, **defaults: Any) -> LibraryLoss:
    fields = {"reduction": "mean", "scale": 1.0, **defaults}
    return LibraryLoss(
        f"onnx.graph of {name}",
        fixed,
        {field: pair(field, default) for field, default in fields.items()},
        exported=False,
        write=lambda arguments: f"the ONNX graph of {fixed.replace(**arguments)!r}",
    )


_COMPOSED = {
    each.name: each
    for each in (
        _library_loss("MeanSquaredError", MeanSquaredError()),
        _library_loss(
            "BinaryCrossEntropy",
            BinaryCrossEntropyLoss(),
            from_logits=False,
            pos_weight=None,
            epsilon=0.0,
        ),
    )
}
register_read(*_COMPOSED.values())

"""The parts of an ONNX graph that is read: its nodes, who makes which name, and its constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from unifiedloss.errors import SpecTypeError
from unifiedloss.interop.library_loss import Call
from unifiedloss.interop.onnx_nodes import Node, Tensor
from unifiedloss.text import shortened


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph, or a list of nodes.

    Attributes:
        nodes: the nodes, each after those whose results it takes.
        inputs: what is known of each input, by name; None in a list of nodes, where each name that
            no node gives is an input.
        outputs: the names of the outputs; None in a list of nodes, where each result that no node
            takes is one.
        constants: the values of the initializers, by name. Those of Constant nodes are added.
        opset: the version of the operators; None if it is not known.
    """

    nodes: Sequence[Node]
    inputs: Mapping[str, Tensor] | None = None
    outputs: Sequence[str] | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    opset: int | None = None


class Reading(NamedTuple):
    """What a graph was read as.

    Attributes:
        call: the call of the loss.
        predictions: the name of the graph's input for the predictions.
        targets: the name of the graph's input for the labels.
        output: the name of the output.
        nodes: the places of the nodes that the output depends on.
    """

    call: Call
    predictions: str
    targets: str
    output: str
    nodes: frozenset[int]


def makers_of(graph: Graph) -> dict[str, int]:
    """The place of the node that gives each name.

    Refuse a name that is given twice, and a node before one that it needs, because ONNX runs
    neither. So going back through the nodes always ends.
    """
    makers: dict[str, int] = {}
    for place, node in enumerate(graph.nodes):
        for name in filter(None, node.outputs):
            if name in makers or name in (graph.inputs or ()) or name in graph.constants:
                msg = (
                    f"{node}: the name {shortened(name)!r} is not the only one of its kind in the "
                    "graph; give each result its own name."
                )
                raise SpecTypeError(msg)
            makers[name] = place
    for place, node in enumerate(graph.nodes):
        if any(makers.get(name, -1) >= place for name in node.inputs):
            msg = f"{node} takes the result of itself or of a later node; sort the nodes."
            raise SpecTypeError(msg)
    return makers


def outputs_of(nodes: Sequence[Node]) -> list[str]:
    """The results of nodes that none of them takes."""
    taken = {name for node in nodes for name in node.inputs}
    return [
        name
        for node in nodes
        if node.operator != "Constant"
        for name in node.outputs
        if name and name not in taken
    ]


class Constants(Mapping[str, Any]):
    """The values of initializers and Constant nodes by name, each read when it is asked for."""

    def __init__(self, graph: Graph) -> None:
        self._initializers = graph.constants
        self._nodes = {
            node.outputs[0]: (node, key)
            for node in graph.nodes
            if node.operator == "Constant" and node.outputs
            for key in ("value", "value_float", "value_floats", "value_int", "value_ints")
            if key in node.attributes
        }

    def __getitem__(self, name: str) -> Any:
        if name in self._initializers:
            return self._initializers[name]
        node, key = self._nodes[name]
        return node.attributes[key]

    def __contains__(self, name: object) -> bool:
        return name in self._initializers or name in self._nodes

    def __iter__(self) -> Iterator[str]:
        yield from (*self._initializers, *self._nodes)

    def __len__(self) -> int:
        return len(self._initializers) + len(self._nodes)

"""What tests/test_replicas.py runs in other processes: cases in replicas, and planted faults."""

from __future__ import annotations

from typing import Any

from unifiedloss.conformance import replicas
from unifiedloss.conformance.processes import Place
from unifiedloss.conformance.replicas import AddUp, Outcome

Found = tuple[Any, Any, Any]

ONE = "combine/weights of many digits"
"""The case that faults are planted in: each replica has another divisor."""


def main(place: Place, backend: str, count: int, strength: str) -> dict[str, Outcome]:
    """Run the cases, and one of them with each fault; all of this only with the strength "all"."""
    del place
    every = strength == "all"
    cases = replicas.cases(every=every)
    found = {"right": replicas.work(backend, count, cases)}
    one = [case for case in cases if case.name == ONE and case.spec.rounding == "native"]
    for fault in FAULTS if every or backend == "jax" else ():
        found[fault.__name__] = replicas.work(backend, count, one, fault)
    return found


def mean_of_means(adapter: Any, spec: Any, add_up: AddUp, *tensors: Any) -> Found:
    """Each replica divides by its own divisor, and the replicas' means are averaged."""
    value, gradient = adapter.value_and_grad(spec, *tensors)
    loss = adapter.result(spec, add_up(adapter.totals(spec, *tensors)))
    count = add_up(value * 0 + 1)
    return loss, add_up(value) / count, gradient / count


def divided_twice(adapter: Any, spec: Any, add_up: AddUp, *tensors: Any) -> Found:
    """The divisor of all, and then the number of replicas."""
    loss, value, gradient = replicas.right(adapter, spec, add_up, *tensors)
    count = add_up(value * 0 + 1)
    return loss, value / count, gradient / count


def own_divisor(adapter: Any, spec: Any, add_up: AddUp, *tensors: Any) -> Found:
    """The divisors are not added up."""
    divisor = adapter.divisor_of(spec, *tensors[1:])
    value, gradient = adapter.value_and_grad(spec, *tensors, None, divisor)
    loss = adapter.result(spec, add_up(adapter.totals(spec, *tensors)))
    return loss, add_up(value), gradient


def own_totals(adapter: Any, spec: Any, add_up: AddUp, *tensors: Any) -> Found:
    """The totals are not added up."""
    _, value, gradient = replicas.right(adapter, spec, add_up, *tensors)
    return adapter.result(spec, adapter.totals(spec, *tensors)), value, gradient


def summed_inside(adapter: Any, spec: Any, add_up: AddUp, *tensors: Any) -> Found:
    """The gradient is taken of the sum over the replicas, in each of them."""
    predictions, *rest = tensors
    divisor = add_up(adapter.divisor_of(spec, *rest))

    def of_all(z: Any) -> Any:
        return add_up(adapter.loss(spec, z, *rest, divisor))

    value, (gradient,) = adapter.differentiate(of_all, (predictions,), None)
    loss = adapter.result(spec, add_up(adapter.totals(spec, *tensors)))
    return loss, value, gradient


FAULTS = (mean_of_means, divided_twice, own_divisor, own_totals, summed_inside)

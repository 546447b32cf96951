"""What the processes of tests/test_distributed.py do, in pairs over gloo.

Each function takes a mesh of all processes, and its assertions hold in each of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.parallel import DistributedDataParallel

import unifiedloss as ul
from unifiedloss.adapters.torch import engine, layout
from unifiedloss.conformance import engines
from unifiedloss.conformance.processes import Place
from unifiedloss.losses.cross_entropy import pipeline

_SPEC = ul.CrossEntropyLoss(from_logits=True, ignore_index=-100)


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of 13 rows and 9 classes, so that no cut is even, labels, and weights of the rows."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(13, 9, generator=generator)
    labels = torch.randint(0, 9, (13,), generator=generator)
    labels[[0, 1, 2, 11]] = -100
    return logits, labels, torch.rand(13, generator=generator) + 0.1


def everything(place: Place, cases: Sequence[Any], of_classes: Sequence[Any]) -> dict[str, Any]:
    """Do all jobs of this module in one process, which spends most of its time importing torch.

    Args:
        place: where this process stands.
        cases: cases of the suite, with their expected results.
        of_classes: those for which faults are made.

    Returns:
        What the jobs return, by their names.
    """
    check(place)
    return {
        "cases": engines.work(place, "torch", cases),
        "train": train(place),
        "without_max": without_max(place, "torch", of_classes),
        "local_classes": local_classes(place, "torch", of_classes),
    }


def check(place: Place) -> None:
    """Run all functions of this module that have a mesh as their argument."""
    with engine.started(place):
        mesh = init_device_mesh("cpu", (place.size,))
        for function in CHECKS:
            function(mesh)


# ------------------------------------------------------------------------------ what calls return


def _forms_of_calls(mesh: Any) -> None:
    """All ways to compute a loss agree, and return DTensors where they are promised."""
    z, y, w = _batch()
    for rounding in ("native", "exact"):
        spec = _SPEC.replace(rounding=rounding)
        loss, gradient = spec.value_and_grad(z, y, sample_weight=w)
        for split in (Shard(0), Shard(-1), Replicate()):
            x = distribute_tensor(z, mesh, [split])
            where = [split] if split == Shard(0) else [Replicate()]
            labels = distribute_tensor(y, mesh, where)
            value, slopes = spec.value_and_grad(x, labels, sample_weight=w)
            assert value.placements == (Replicate(),)
            assert slopes.placements == x.placements
            assert slopes.shape == x.shape
            totals = spec.totals(x, y, sample_weight=w.numpy())
            divisor = spec.divisor_of(labels, sample_weight=w)
            # Exact mode goes from classes to rows.
            in_parts = split == Shard(0) or (split == Shard(-1) and rounding == "exact")
            assert totals.placements == ((Partial("sum"),) if in_parts else (Replicate(),))
            assert divisor.placements == (
                (Partial("sum"),) if split == Shard(0) else (Replicate(),)
            )
            found = [
                value,
                spec(x, y, sample_weight=w),
                spec(x, labels, sample_weight=distribute_tensor(w, mesh, where)),
                spec(x, y, sample_weight=w, divisor=divisor),
                spec(x, y, sample_weight=w, divisor=divisor.full_tensor()),
                spec.result(totals),
                spec.result(totals + totals) if split == Replicate() else value,
                spec.to("torch")(x, y, sample_weight=w),
            ]
            for each in found:
                assert isinstance(each, DTensor)
                assert each.shape == ()
                _same(each, loss, rounding)
            _same(slopes, gradient, rounding)
            _, slopes = spec.value_and_grad(x, y, sample_weight=w, divisor=divisor)
            _same(slopes, gradient, rounding)
            _, slopes = spec.value_and_grad(x, y, sample_weight=w, upstream=torch.tensor(3.0))
            wanted = spec.value_and_grad(z, y, sample_weight=w, upstream=torch.tensor(3.0))[1]
            _same(slopes, wanted, rounding)
            each = spec.replace(reduction="none")
            losses = each(x, labels, sample_weight=w)
            assert losses.placements == tuple(where)
            _same(losses, each(z, y, sample_weight=w), rounding)
            # A plain piece over the divisor of DTensors.
            _same(spec(z, y, sample_weight=w, divisor=divisor), loss, rounding)


def _same(x: Any, wanted: Tensor, rounding: str) -> None:
    got = x.full_tensor() if isinstance(x, DTensor) else x
    assert got.shape == wanted.shape
    if rounding == "exact":
        assert got.dtype is wanted.dtype
        assert got.numpy().tobytes() == wanted.numpy().tobytes()
    else:
        assert torch.allclose(got.to(wanted.dtype), wanted, rtol=2e-6, atol=1e-7), (got, wanted)


def _partial_predictions(mesh: Any) -> None:
    """Predictions that are still to be added, as a layer split by rows gives them."""
    z, y, _ = _batch()
    loss, gradient = _SPEC.value_and_grad(z, y)
    part = z / mesh.size()
    x = DTensor.from_local(part, mesh, [Partial("sum")])
    value, slopes = _SPEC.value_and_grad(x, y)
    assert slopes.placements == (Replicate(),)
    _same(value, loss, "native")
    _same(slopes, gradient, "native")


def _refusals(mesh: Any) -> None:
    """DTensors beside plain predictions, and DTensors of two meshes, are refused in words."""
    z, y, _ = _batch()
    labels = distribute_tensor(y, mesh, [Replicate()])
    with pytest.raises(ul.UnsupportedError, match=r"targets is a DTensor .* targets.full_tensor"):
        _SPEC(z, labels)
    with pytest.raises(ul.UnsupportedError, match="sample_weight is a DTensor beside targets"):
        _SPEC.divisor_of(y, sample_weight=distribute_tensor(torch.ones(13), mesh, [Shard(0)]))
    other = init_device_mesh("cpu", (1, mesh.size()))
    x = distribute_tensor(z, other, [Replicate(), Shard(0)])
    with pytest.raises(ul.UnsupportedError, match="distribute both on one mesh"):
        _SPEC(x, labels)
    weight = torch.ones(13, requires_grad=True)
    rows = distribute_tensor(z, mesh, [Shard(0)])
    exact = _SPEC.replace(rounding="exact")(rows, y, sample_weight=weight)
    with pytest.raises(ul.UnsupportedError, match="no second derivative where"):
        torch.autograd.grad(exact, weight, create_graph=True)
    with pytest.raises(ul.ShapeError, match="targets"):
        _SPEC(x, y[:-1])
    with pytest.raises(ul.SpecValueError, match="has no totals"):
        _SPEC.replace(reduction="none").totals(x, y)
    for rounding in ("native", "exact"):
        spec = _SPEC.replace(rounding=rounding)
        with pytest.raises(ul.BadValueError, match="divisor is -1"):
            spec(x, y, divisor=-1.0)
        for reduction in ("sum", "none"):
            with pytest.raises(ul.SpecValueError, match="divisor is for a mean"):
                spec.replace(reduction=reduction)(x, y, divisor=4)


def _other_derivatives(mesh: Any) -> None:
    """Gradients to targets and weights, and second derivatives, are those of one process.

    The loss is squared, so that its upstream gradient has a derivative too.
    """
    z, y, w = _batch()
    t, v = z.flip(0).softmax(1), z.flip(1)
    weighted = _SPEC.replace(divisor="all", class_weights=range(1, 10), label_smoothing=0.1)

    def derivatives(spec: Any, x: Tensor, targets: Tensor, w: Tensor, v: Tensor) -> list[Any]:
        given = [a.detach().requires_grad_(a.is_floating_point()) for a in (x, w, targets)]
        loss = spec(given[0], given[2], sample_weight=given[1]) ** 2
        some = [a for a in given if a.requires_grad]
        first = torch.autograd.grad(loss, some, create_graph=True)
        return [*first, *torch.autograd.grad((first[0] * v).sum(), some)]

    for spec, targets in ((weighted, t), (weighted, y), (_SPEC.replace(reduction="sum"), y)):
        wanted = derivatives(spec, z, targets, w, v)
        for split in (Shard(0), Shard(1)):
            x, direction = (distribute_tensor(a, mesh, [split]) for a in (z, v))
            of_targets = split if split == Shard(0) or targets is t else Replicate()
            given = x, distribute_tensor(targets, mesh, [of_targets]), w, direction
            for rounding in ("native", "exact"):
                found = derivatives(spec.replace(rounding=rounding), *given)
                for got, right in zip(found, wanted, strict=True):
                    limit = 1e-5 * float(right.abs().max())
                    assert torch.allclose(_whole(got), right, rtol=1e-5, atol=limit), (spec, split)


def _bad_labels(mesh: Any) -> None:
    """A bad value gives NaN in all processes, because one that raised would leave the others."""
    z, y, _ = _batch()
    y[12] = 9
    for rounding in ("native", "exact"):
        for split in (Shard(0), Shard(1)):
            x = distribute_tensor(z, mesh, [split])
            value, slopes = _SPEC.replace(rounding=rounding).value_and_grad(x, y)
            assert value.full_tensor().isnan()
            assert slopes.full_tensor()[12].isnan().all()
            assert not slopes.full_tensor()[:12].isnan().any()


# ------------------------------------------------------------------------------------ collectives


@contextlib.contextmanager
def _without() -> Iterator[None]:
    yield


def _collectives(mesh: Any) -> None:
    """What is sent depends on neither `loss_parallel` nor the number of classes; no logits are."""
    z, y, w = _batch()
    smoothed = _SPEC.replace(label_smoothing=0.1, class_weights=tuple(range(1, 10)))
    expected = {
        # The sum and the divisor.
        ("native", "rows"): 2,
        # The largest logit, and two sums at once.
        ("native", "classes"): 2,
        # The largest, the sum of exponentials, the label's cost, the sum of costs; backward: one.
        ("smoothed", "classes"): 5,
        ("smoothed", "rows"): 2,
        # The totals and the divisor at once.
        ("exact", "rows"): 1,
    }
    specs = {"native": _SPEC, "smoothed": smoothed, "exact": _SPEC.replace(rounding="exact")}
    for (name, split), number in expected.items():
        found = []
        for around in (_without, loss_parallel):
            axis = {"rows": 0, "classes": 1}[split]
            x = distribute_tensor(z, mesh, [Shard(axis)]).requires_grad_()
            with around(), CommDebugMode() as mode:
                loss = specs[name](x, y, sample_weight=w)
                loss.backward()
            counts = {str(op): count for op, count in mode.get_comm_counts().items()}
            assert counts == {"c10d_functional.all_reduce": number}, (name, split, counts)
            assert x.grad is not None
            found.append((loss.full_tensor(), x.grad.full_tensor()))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def _divisor_without_collectives(mesh: Any) -> None:
    """A divisor that is known before the forward pass leaves one reduction: that of the sum."""
    z, y, _ = _batch()
    x = distribute_tensor(z, mesh, [Shard(0)])
    divisor = _SPEC.divisor_of(distribute_tensor(y, mesh, [Shard(0)])).full_tensor()
    with CommDebugMode() as mode:
        _SPEC(x, y, divisor=divisor)
    assert mode.get_total_counts() == 1


CHECKS = (
    _forms_of_calls,
    _partial_predictions,
    _refusals,
    _other_derivatives,
    _bad_labels,
    _collectives,
    _divisor_without_collectives,
)


# --------------------------------------------------------------------------------- training steps

MISTAKES = ("mean of means", "missing world size", "divided twice")

_LIMIT = 100 * float(np.finfo(np.float32).eps)
"""How far a gradient in float32 may lie from one in float64, of its largest entry."""


def train(place: Place) -> dict[str, list[str]]:
    """Take training steps with DDP and FSDP2, right and with each mistake.

    Returns:
        What differs from one process, by engine and mistake; "" for the right way.
    """
    with engine.started(place):
        mesh = init_device_mesh("cpu", (place.size,))
        return {
            f"{kind} {mistake}".strip(): _steps(mesh, kind, mistake)
            for kind in ("DDP", "FSDP2")
            for mistake in ("", *MISTAKES)
        }


def _steps(mesh: Any, kind: str, mistake: str) -> list[str]:
    """Three steps of gradient descent, each compared with one process in float64."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(13, 5, generator=generator)
    _, labels, weights = _batch()
    torch.manual_seed(2)
    model: Any = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 9))
    if kind == "DDP":
        model = DistributedDataParallel(model)
    else:
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rank, size = mesh.get_rank(), mesh.size()
    rows = slice(rank * 13 // size, (rank + 1) * 13 // size)
    x, y, w = inputs[rows], labels[rows], weights[rows]
    wrong = []
    for step in range(3):
        whole = _copy(model)
        value, gradients = _of_one_process(whole, inputs, labels, weights)
        logits = model(x)
        loss, totals = _loss_of(mistake, logits, y, w, size)
        optimizer.zero_grad()
        loss.backward()
        found = float(_SPEC.result(totals))
        if abs(found - value) > _LIMIT * value:
            wrong.append(f"step {step}: the loss is {found}, should be {value}")
        for name, gradient in gradients.items():
            got = _whole(dict(model.named_parameters())[_name(kind, name)].grad)
            distance = (got.double() - gradient).abs().max() / gradient.abs().max()
            if not distance <= _LIMIT:
                wrong.append(f"step {step}: the gradient to {name} is {distance:.1e} off")
        if not mistake:
            wrong += _exact_parts(logits.detach(), y, w, labels, weights)
        optimizer.step()
    return wrong


def _loss_of(mistake: str, z: Tensor, y: Tensor, w: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The loss to differentiate, and the totals of all processes."""
    divisor = _SPEC.divisor_of(y, sample_weight=w)
    dist.all_reduce(divisor)
    totals = _SPEC.totals(z.detach(), y, sample_weight=w)
    dist.all_reduce(totals)
    scaled = _SPEC.replace(scale=float(size))  # the engine averages the gradients of processes
    if mistake == "mean of means":
        return _SPEC(z, y, sample_weight=w), totals
    if mistake == "missing world size":
        return _SPEC(z, y, sample_weight=w, divisor=divisor), totals
    if mistake == "divided twice":
        return scaled(z, y, sample_weight=w, divisor=divisor) / divisor, totals
    return scaled(z, y, sample_weight=w, divisor=divisor), totals


def _name(kind: str, name: str) -> str:
    return f"module.{name}" if kind == "DDP" else name


def _whole(x: Any) -> Tensor:
    found: Tensor = x.full_tensor() if isinstance(x, DTensor) else x
    return found


def _copy(model: Any) -> nn.Module:
    """The model of one process with the same parameters, in float64."""
    made = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 9)).double()
    state = {name.removeprefix("module."): _whole(x) for name, x in model.state_dict().items()}
    made.load_state_dict(state)
    return made


def _of_one_process(
    model: nn.Module, x: Tensor, y: Tensor, w: Tensor
) -> tuple[float, dict[str, Tensor]]:
    loss = _SPEC(model(x.double()), y, sample_weight=w)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss), {name: _gradient(p) for name, p in model.named_parameters()}


def _gradient(p: nn.Parameter) -> Tensor:
    assert p.grad is not None
    return p.grad


def _exact_parts(z: Tensor, y: Tensor, w: Tensor, labels: Tensor, weights: Tensor) -> list[str]:
    """What differs, in bits, from exact mode in one process that is given the same logits."""
    size = dist.get_world_size()
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, z)
    exact = _SPEC.replace(rounding="exact", scale=float(size))
    loss, gradient = exact.value_and_grad(torch.cat(parts), labels, sample_weight=weights)
    divisor = exact.divisor_of(y, sample_weight=w)
    totals = exact.totals(z, y, sample_weight=w)
    for vector in (divisor, totals):
        dist.all_reduce(vector)
    wrong = []
    if not torch.equal(exact.result(totals), loss):
        wrong.append(f"the exact loss is {exact.result(totals)}, should be {loss}")
    _, slopes = exact.value_and_grad(z, y, sample_weight=w, divisor=divisor)
    start = sum(len(part) for part in parts[: dist.get_rank()])
    if not torch.equal(slopes, gradient[start : start + len(z)]):
        wrong.append("the exact gradient to the logits has other bits")
    return wrong


# ----------------------------------------------------------------------------- faults that are made


def without_max(place: Place, backend: str, jobs: Any) -> engines.Outcome:
    """The cases, where each process keeps the largest logit of its own classes."""
    reduced = layout.Layout.reduced

    def faulty(self: Any, x: Tensor, over: Any, how: str = "sum") -> Tensor:
        return x if how == "max" else reduced(self, x, over, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout.Layout, "reduced", faulty)
        return engines.work(place, backend, jobs)


def local_classes(place: Place, backend: str, jobs: Any) -> engines.Outcome:
    """The cases, where smoothing counts the classes of each process alone."""
    share = pipeline._share

    def faulty(e: Any, predictions: Any) -> Any:
        split = e.ops.layout
        return share(e, predictions) * math.prod(split.mesh.size(i) for i in split.over_classes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_share", faulty)
        return engines.work(place, backend, jobs)

"""Measure what a loss of DTensors costs: ``python -m tools.distributed_costs``.

It prints the table of docs/distributed.md for this machine: the processor time of all processes for
loss and gradient, and the bytes that each gives to collectives, from 1 to 4 processes with one
thread each. Processor time, because 4 processes on 2 cores wait for one another.
"""

from __future__ import annotations

import re
import statistics
import time
from typing import Any

from unifiedloss.conformance import processes
from unifiedloss.conformance.processes import Place

ROWS, CLASSES = 4096, 1000
REPEATS = 15

WAYS = {
    "native, rows": ("native", 0, 0.0),
    "native, classes": ("native", 1, 0.0),
    "native, classes, smoothing": ("native", 1, 0.1),
    "exact, rows": ("exact", 0, 0.0),
}
"""The rounding, the axis that is split, and the amount of smoothing."""


def measure(place: Place) -> dict[str, tuple[float, int, int]]:
    """The seconds of processor time, collectives and bytes of each way, in one process."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    import unifiedloss as ul
    from unifiedloss.adapters.torch import engine

    found = {}
    torch.manual_seed(0)
    logits = torch.randn(ROWS, CLASSES)
    labels = torch.randint(0, CLASSES, (ROWS,))
    labels[: ROWS // 8] = -100
    with engine.started(place):
        mesh = init_device_mesh("cpu", (place.size,))
        for name, (rounding, axis, smoothing) in WAYS.items():
            spec = ul.CrossEntropyLoss(
                from_logits=True, ignore_index=-100, rounding=rounding, label_smoothing=smoothing
            )
            x = distribute_tensor(logits, mesh, [Shard(axis)]).requires_grad_()

            def step(spec: Any = spec, x: Any = x) -> None:
                x.grad = None
                spec(x, labels).backward()

            for _ in range(3):
                step()
            times = []
            for _ in range(REPEATS):
                torch.distributed.barrier()
                start = time.process_time()
                step()
                times.append(time.process_time() - start)
            with _sent() as sent:
                step()
            found[name] = (statistics.median(times), *sent.found)
    return found


def _sent() -> Any:
    """A context that counts collectives, and the bytes that this process gives to them."""
    from torch.distributed.tensor import DTensor
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sent(TorchDispatchMode):
        found = (0, 0)

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if any(issubclass(each, DTensor) for each in types):
                return NotImplemented  # its operations on local tensors come next
            name = str(func)
            if name.startswith("_c10d_functional.") and not re.search("wait|wrap", name):
                count, size = self.found
                self.found = count + 1, size + args[0].numel() * args[0].itemsize
            return func(*args, **(kwargs or {}))

    return Sent()


def main() -> None:
    """Print the table."""
    sizes = (1, 2, 3, 4)
    each = [processes.run("tools.distributed_costs:measure", size) for size in sizes]
    print("| way | " + " | ".join(f"{size}" for size in sizes) + " | sent in a step by each |")
    print("|---|" + "---|" * (len(sizes) + 1))
    for name in WAYS:
        numbers = [sum(of_rank[name][0] for of_rank in found) / ROWS * 1e6 for found in each]
        _, count, size = each[-1][0][name]
        times = " | ".join(f"{number:.2f}" for number in numbers)
        print(f"| {name} | {times} | {size:,} bytes in {count} |")


if __name__ == "__main__":
    main()

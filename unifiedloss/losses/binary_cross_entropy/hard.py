r"""Cases of the binary cross-entropy that are hard to round correctly.

\(1 / (1 - x) = 1 + x + x^2 + \dots\) at \(x = 2^{-p}\), for p bits of precision, is a midpoint
except for \(2^{-2p}\). See `unifiedloss.losses.cross_entropy.hard` for the logarithm and for ties.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unifiedloss.conformance.case import Case
from unifiedloss.conformance.data import f32
from unifiedloss.conformance.hard import PRECISION, PROBABILITIES, SUBNORMAL_GAPS, TIE, hard_case
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss

_LOGITS = BinaryCrossEntropyLoss(from_logits=True, reduction="none")
_P = BinaryCrossEntropyLoss(reduction="none")

# Of each logit and target one number, the loss or the slope, lies so close to a midpoint that
# float64 arithmetic with an error bound of about 30 units in the last place cannot decide it.
_ANSWERS = (
    (0.5991945266723633, 1.0),
    (-0.44168487191200256, 0.0),
    (0.6626286506652832, 1.0),
    (-0.07978048920631409, 0.0),
    (-1.1590641736984253, 0.2388385534286499),
    (-2.2255966663360596, 0.09102415293455124),
    (2.3445591926574707, 0.9111925363540649),
    (-0.7469272613525391, 0.24382036924362183),
    (6.777421474456787, 0.4371098577976227),
)


def hard_cases() -> Iterator[Case]:
    """The hard cases."""
    yield from _next_to_a_midpoint()
    yield from _ties_broken_by_a_tiny_term()
    yield from _on_a_midpoint()
    rounded = [0.0029296875, 0.0107421875, -0.00732421875]
    yield hard_case("rounded twice, binary", _LOGITS, "float16", rounded, f32(0, 0, 1))
    yield from _cancelling()
    for dtype, gap in SUBNORMAL_GAPS.items():
        yield hard_case("subnormal results, binary", _LOGITS, dtype, gap, np.ones(3, np.float32))


def _next_to_a_midpoint() -> Iterator[Case]:
    logits, answers = zip(*_ANSWERS, strict=True)
    yield hard_case("searched, binary", _LOGITS, "float32", logits, f32(*answers), compiled=True)
    for t in (0, 1):
        targets = np.full(len(PROBABILITIES), t, np.float32)
        yield hard_case(f"searched, binary p, target {t}", _P, "float32", PROBABILITIES, targets)
    # These float64 results lie within 1e-7 of an ulp of a midpoint.
    near = [-0.00730967849436148, 1.7194979701367912]
    yield hard_case("searched, binary", _LOGITS, "float64", near, [1.0, 1.0])
    p = [0.49654508061100644, 0.14138765645310747, 0.08867531689588148, 0.5755191671759234]
    yield hard_case("searched, binary p", _P, "float64", p * 2, [0.0] * 4 + [1.0] * 4)


def _ties_broken_by_a_tiny_term() -> Iterator[Case]:
    far = 1000.0
    for dtype, bits in PRECISION.items():
        if dtype == "float64":
            continue
        # The loss is slightly above (1 + 2^-p) 1024; the slopes are +-(1 + 2^-p) (1 - e^-1000).
        above = _LOGITS.replace(pos_weight=1 + 2.0**-bits)
        yield hard_case(f"{TIE}, pos_weight", above, dtype, [-1024, -far], f32(1, 1))
        # The slopes are 1 - 2^-(p+1) - e^-1000 and its negative.
        soft = np.array([2.0 ** -(bits + 1), 1 - 2.0 ** -(bits + 1)])
        yield hard_case(f"{TIE}, soft target", _LOGITS, dtype, [far, -far], soft)
    # 3 (2^52 + 3) has 54 bits, so it is a tie in float64, and log(1 + e^z) breaks it.
    three = _LOGITS.replace(pos_weight=3)
    yield hard_case(f"{TIE}, pos_weight", three, "float64", [-(2.0**52 + 3)], [1.0])
    for dtype, bits in PRECISION.items():
        zeros = np.zeros(2, np.float64 if dtype == "float64" else np.float32)
        x = [2.0 ** (1 - bits), 2.0**-bits]
        yield hard_case("a logarithm next to a tie, binary p", _P, dtype, x, zeros)


def _on_a_midpoint() -> Iterator[Case]:
    """Results that are midpoints themselves: more precision never decides how to round them."""
    yield hard_case("equal logits, two classes", _LOGITS, "float32", [0, 0, 0], f32(0.5, 0.25, 1))
    for dtype, bits in PRECISION.items():
        p = [0.375, 0.5, 1 - 2.0 ** (1 - bits)]
        targets = np.array(p, np.float64 if dtype == "float64" else np.float32)
        yield hard_case("p is its target", _P, dtype, p, targets)


def _cancelling() -> Iterator[Case]:
    """Differences of nearly equal numbers, as in a model that has learnt its targets."""
    z = np.linspace(-9, 9, 12).astype(np.float32)
    fitted = (1 / (1 + np.exp(-z.astype(np.float64)))).astype(np.float32)
    yield hard_case("fitted, binary", _LOGITS, "float32", z, fitted)
    near = fitted.astype(np.float64) * (1 + 2.0**-30)
    yield hard_case("fitted, binary p", _P, "float32", fitted, near)
    # 1 - t' is 5e-13, and computing it as a subtraction from 1 would lose its digits.
    smoothed = _LOGITS.replace(label_smoothing=1e-12)
    yield hard_case("1 - t'", smoothed, "float32", [40, -40, 3], f32(1, 0, 1))
    edge = 1 - 2.0**-20
    p = [edge, np.nextafter(np.float32(edge), np.float32(0)), 2.0**-20, 2.0**-20 + 2.0**-43]
    clipped, targets = _P.replace(epsilon=2.0**-20), f32(1, 0.25, 0.5, 0)
    yield hard_case("p near its clip", clipped, "float32", p, targets)

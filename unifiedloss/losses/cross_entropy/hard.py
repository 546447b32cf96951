r"""Cases of the cross-entropy that are hard to round correctly.

- \(-\log(1 - x) = x + x^2/2 + x^3/3 + \dots\) at \(x = 2^{1-p}\), for p bits of precision, is a
  midpoint except for its third term \(2^{2 - 2p} / 3\) relative to x.
- \(m - z_y\) and \(w\,p_c\) are exact ties for suitable logits or weights, and \(\log(1 + s)\) or
  \(1 - p_c\), which breaks the tie, can be made as small as one likes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unifiedloss.conformance.case import Case
from unifiedloss.conformance.data import INF, f32
from unifiedloss.conformance.hard import (
    HELD,
    PRECISION,
    PROBABILITIES,
    SUBNORMAL_GAPS,
    TIE,
    hard_case,
)
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss

_LOGITS = CrossEntropyLoss(from_logits=True, reduction="none")
_P = CrossEntropyLoss(reduction="none")

# In each row one number, the loss or an element of the gradient, lies so close to a midpoint that
# float64 arithmetic with an error bound of about 30 units in the last place cannot decide it.
_INDEX_ROWS = (
    ([2.440800905227661, 4.715347766876221, -1.7557564973831177], 0),
    ([-0.12339119613170624, 1.8098288774490356, 1.772240400314331], 1),
    ([1.6646703481674194, -6.3333420753479, 0.6825031042098999], 1),
    ([-2.9914631843566895, 2.100679636001587, -2.827516555786133], 1),
    ([-3.7280099391937256, -1.0646088123321533, -2.1798455715179443], 0),
    ([4.347033500671387, 2.391629219055176, 1.151382327079773], 1),
    ([-2.7811968326568604, -1.0950148105621338, -1.3804444074630737], 2),
    ([0.9217119812965393, 1.1397044658660889, 1.2274742126464844], 2),
)
_DENSE_ROWS = (
    (
        [-0.8840904235839844, -0.42079776525497437, -2.498645544052124],
        [0.11722974479198456, 0.5411152243614197, 0.34165504574775696],
    ),
    (
        [-3.486111879348755, -1.3720546960830688, 0.5298298001289368],
        [0.04783874750137329, 0.09717901796102524, 0.8549822568893433],
    ),
    (
        [0.3193688690662384, 0.7555069923400879, 1.4217519760131836],
        [0.714634358882904, 0.23589593172073364, 0.04946970194578171],
    ),
    (
        [1.6625819206237793, -3.173318862915039, -0.35837215185165405],
        [0.19287453591823578, 0.6909160017967224, 0.11620946228504181],
    ),
    (
        [3.85229754447937, 2.490070104598999, -1.8984805345535278],
        [0.3368481993675232, 0.20216722786426544, 0.46098455786705017],
    ),
)
# Rows whose difference z - m float64 rounds, because m is tiny, with a weight that brings the loss
# within 40 units of float64's last place of a midpoint. The last three are for dense targets.
_ROUNDED_SHIFTS = (
    (1.0547763834231616e-12, -74.69154357910156, 3.0540950722145097e32),
    (1.5805542638580583e-12, -79.1253433227539, 2.967105965864735e34),
    (1.5426994534259442e-12, -65.85441589355469, 3.988927334300119e28),
    (1.1750476893584993e-12, -77.42278289794922, 5.369391934309682e33),
    (1.244445085174517e-12, -71.79400634765625, 2.525433165017274e31),
    (1.6135389465515848e-12, -67.87329864501953, 3.0579409093988267e29),
)


def hard_cases() -> Iterator[Case]:
    """The hard cases."""
    yield from _next_to_a_midpoint()
    yield from _ties_broken_by_a_tiny_term()
    yield from _on_a_midpoint()
    yield from _rounded_twice()
    yield from _cancelling()
    yield from _infinite()
    yield from _at_the_ends_of_the_range()


def _next_to_a_midpoint() -> Iterator[Case]:
    rows, labels = zip(*_INDEX_ROWS, strict=True)
    yield hard_case("searched, index", _LOGITS, "float32", rows, labels, compiled=True)
    rows, dense = zip(*_DENSE_ROWS, strict=True)
    yield hard_case("searched, dense", _LOGITS, "float32", rows, f32(*dense), compiled=True)
    yield hard_case("searched, p", _P, "float32", [[x, x] for x in PROBABILITIES], [0] * 8)
    largest, other, weights = zip(*_ROUNDED_SHIFTS, strict=True)
    pairs, weight = np.stack([largest, other], 1), np.array(weights)
    first, name = np.eye(2, dtype=np.float32)[[0] * 6], "a rounded shift"
    yield hard_case(name, _LOGITS, "float32", pairs, [0] * 6, sample_weight=weight, compiled=True)
    yield hard_case(
        f"{name}, dense", _LOGITS, "float32", pairs, first, sample_weight=weight, compiled=True
    )
    # These float64 results lie within 1e-7 of an ulp of a midpoint.
    wide = [
        [1.0334224372276304, 0.9128064315355026, -5.407383000113005],
        [2.282598805392552, -0.22977445549098685, -0.4669192211897324],
        [-0.7012834966619796, -1.799444088361853, 6.851960148138351],
        [2.9173253146206775, -6.07607003734249, -0.37658337020497634],
    ]
    yield hard_case("searched, index", _LOGITS, "float64", wide, [0] * 4)
    yield hard_case("searched, dense", _LOGITS, "float64", wide, np.eye(3)[[0] * 4] + 0.25)


def _ties_broken_by_a_tiny_term() -> Iterator[Case]:
    """Ties broken by a term below 2^-80, the error bound of double-double arithmetic.

    Where the term can be chosen freely, it is below any practical number of digits (e^-1000).
    """
    yield hard_case(
        f"{TIE}, index", _LOGITS, "float32", [[100000, -0.00390625]], [1], compiled=True
    )
    yield hard_case(f"{TIE}, index", _LOGITS, "float64", [[2.0**53, -1]], [1])
    far = 1000.0
    for dtype, bits in PRECISION.items():
        if dtype == "float64":
            continue
        # The loss is slightly above (1 + 2^-p) 1024; the slopes are +-(1 + 2^-p) (1 - e^-1000).
        yield hard_case(
            f"{TIE}, class weight",
            _LOGITS.replace(class_weights=(1 + 2.0**-bits, 1)),
            dtype,
            [[0, far], [0, 1024]],
            [0, 0],
        )
        # The slopes are 1 - 2^-(p+1) - e^-1000 and its negative.
        soft = np.array([[2.0 ** -(bits + 1), 1 - 2.0 ** -(bits + 1)]])
        yield hard_case(f"{TIE}, dense", _LOGITS, dtype, [[far, 0]], soft)
    for dtype, bits in PRECISION.items():
        near_1 = 1 - 2.0 ** (1 - bits)
        yield hard_case("a logarithm next to a tie, p", _P, dtype, [[near_1, 0.5]], [0])
        clipped = _P.replace(epsilon=2.0 ** (1 - bits))
        yield hard_case("a logarithm next to a tie, clipped", clipped, dtype, [[1.0, 0.0]], [0])


def _on_a_midpoint() -> Iterator[Case]:
    """Results that are midpoints themselves: more precision never decides how to round them."""
    for dtype, classes in (("bfloat16", 512), ("float16", 4096)):
        name = "equal logits, (K - 1) / K is a tie"
        yield hard_case(name, _LOGITS, dtype, np.zeros((2, classes)), [0, 1])
    uniform = np.full((2, 8), 0.125, np.float32)
    name = "equal logits, uniform targets"
    yield hard_case(name, _LOGITS, "float32", np.full((2, 8), 7.5), uniform)
    for dtype, bits in PRECISION.items():
        # w / p = 2 m + 1 has one bit too many, because w = (2 m + 1) p. Class weights are float64.
        if dtype != "float64":
            weights = (0.75 * (1 + 2.0**-bits), 0.25 * (1 + 3 * 2.0**-bits))
            spec = _P.replace(class_weights=weights)
            yield hard_case("slope of -log p", spec, dtype, [[0.75, 0.25], [0.75, 0.25]], [0, 1])
    yield hard_case("one class", _LOGITS, "float32", [[5], [-1e30]], [0, 0])
    yield hard_case("one class, dense", _LOGITS, "bfloat16", [[5], [3]], f32([1], [0.3]))


def _rounded_twice() -> Iterator[Case]:
    """Results that are wrong in a half type if they are rounded to float32 first."""
    rows = {
        "float16": [
            [0.90625, 2.265625, 4.01171875],
            [-5.6484375, -3.154296875, -3.9140625],
            [-5.58203125, 1.5859375, -2.466796875],
            [-3.806640625, -1.6787109375, 1.2529296875],
        ],
        "bfloat16": [
            [3.6875, -10.0625, 1.578125],
            [-3.78125, 3.890625, 0.42578125],
            [-4.8125, -6.875, 6.09375],
            [0.2216796875, 0.61328125, 3.203125],
        ],
    }
    first = np.eye(3, dtype=np.float32)[[0] * 4]
    for dtype, logits in rows.items():
        yield hard_case("rounded twice, index", _LOGITS, dtype, logits, [0] * 4)
        yield hard_case("rounded twice, dense", _LOGITS, dtype, logits, first)
    yield hard_case("rounded twice, p", _P, "float16", [[0.005340576171875, 0.5]], [0])


def _cancelling() -> Iterator[Case]:
    """Differences of nearly equal numbers, as in a model that has learnt its targets."""
    rows = np.linspace(-9, 9, 12).astype(np.float32).reshape(4, 3)
    share = np.exp(rows.astype(np.float64))
    share /= share.sum(1, keepdims=True)
    yield hard_case("fitted, dense", _LOGITS, "float32", rows, share.astype(np.float32))
    yield hard_case("fitted, dense of float64", _LOGITS, "float32", rows, share)
    # The softmax equals the smoothed target: 0.9 + 0.1 / 4 at the label, 0.1 / 4 elsewhere.
    at_label = np.float32(np.log(0.925 / 0.025))
    smoothed = _LOGITS.replace(label_smoothing=0.1)
    yield hard_case("fitted, smoothed", smoothed, "float32", [[at_label, 0, 0, 0]], [0])
    edge = 1 - 2.0**-20
    p = [edge, np.nextafter(np.float32(edge), np.float32(0)), 2.0**-20, 2.0**-20 + 2.0**-43]
    clipped, soft = _P.replace(epsilon=2.0**-20), f32([0.1, 0.2, 0.3, 0.4])
    yield hard_case("dense p near its clip", clipped, "float32", [p], soft)


def _infinite() -> Iterator[Case]:
    """Sums and means of infinite losses."""
    rows = [[0, -INF], [-INF, 0]]
    for dtype in ("float32", "float64"):
        weight, total = np.array([1, -1], HELD[dtype]), _LOGITS.replace(reduction="sum")
        name = "infinite losses cancel"
        yield hard_case(name, total, dtype, rows, [1, 0], sample_weight=weight)
        mean = _LOGITS.replace(reduction="mean")
        yield hard_case("an infinite loss", mean, dtype, rows, [1, 1])


def _at_the_ends_of_the_range() -> Iterator[Case]:
    """Subnormal results, results of 0, and exponentials that overflow."""
    offsets = [[710, 700], [722, 712], [-740, -741], [-760, -750.5], [87.5, 88.5], [-103, -104]]
    labels, name = [0, 1, 0, 1, 0, 1], "exponentials out of range"
    one_hot = np.eye(2, dtype=np.float32)[labels]
    yield hard_case(name, _LOGITS, "float32", offsets, labels, compiled=True)
    yield hard_case(f"{name}, dense", _LOGITS, "float32", offsets, one_hot)
    yield hard_case(name, _LOGITS, "float64", offsets, labels)
    name = "logits whose difference overflows"
    yield hard_case(name, _LOGITS, "float64", [[1e308, -1e308], [1e308, -1e308]], [0, 1])
    yield hard_case(name, _LOGITS, "float32", [[3e38, -3e38], [3e38, -3e38]], [0, 1])
    for dtype, gap in SUBNORMAL_GAPS.items():
        yield hard_case("subnormal results", _LOGITS, dtype, [[x, 0] for x in gap], [0, 0, 0])
    yield hard_case("results of 0", _LOGITS, "float32", [[200, 0, 0], [1e30, 0, -1e30]], [0, 0])

r"""Cases that are hard to round correctly: results next to, or on, the midpoint of two floats.

Such rows are rare: a random float32 result lies within \(2^{-26}\) of an ulp of a midpoint once in
\(3 \cdot 10^7\) times. A search among some \(10^8\) random rows found these, or they are derived:

- \(-\log(1 - x) = x + x^2/2 + x^3/3 + \dots\) at \(x = 2^{1-p}\), for p bits of precision, is a
  midpoint except for its third term \(2^{2 - 2p} / 3\) relative to x. \(1 / (1 - x) = 1 + x + x^2 +
  \dots\) at \(x = 2^{-p}\) is a midpoint except for \(2^{-2p}\).
- \(m - z_y\) and \(w\,p_c\) are exact ties for suitable logits or weights, and \(\log(1 + s)\) or
  \(1 - p_c\), which breaks the tie, can be made as small as one likes.
- \(d^2 w\) is one unit of its last place away from a midpoint for
  \(w \equiv (2^{b-1} \pm 1) / d^2\) modulo \(2^b\).

These cases test exact mode. For native mode they are ordinary calls, and it has enough of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.conformance.case import Case
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError

Array = NDArray[Any]
_Make = Callable[..., Case]

_CE = CrossEntropyLoss(from_logits=True, reduction="none")
_BCE = BinaryCrossEntropyLoss(from_logits=True, reduction="none")
_CE_P = CrossEntropyLoss(reduction="none")
_BCE_P = BinaryCrossEntropyLoss(reduction="none")
_MSE = MeanSquaredError(reduction="none")
_HELD: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": np.float32,
    "float32": np.float32,
    "float64": np.float64,
}
_PRECISION = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
INFINITY = float("inf")


def hard_cases() -> Iterator[Case]:
    """All hard cases; their names begin with "hard/"."""

    def case(name: str, spec: Any, dtype: str, predictions: Any, targets: Any, **more: Any) -> Case:
        predictions = np.array(predictions, _HELD[dtype])
        return Case(
            f"hard/{name}, {dtype}",
            spec,
            predictions,
            np.array(targets),
            dtype=dtype,
            rules=("rounding",),
            **more,
        )

    yield from _next_to_a_midpoint(case)
    yield from _ties_broken_by_a_tiny_term(case)
    yield from _on_a_midpoint(case)
    yield from _rounded_twice(case)
    yield from _cancelling(case)
    yield from _sums(case)
    yield from _at_the_ends_of_the_range(case)


def _f32(*values: Any) -> Array:
    return np.array(values, np.float32)


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
_BINARY = (
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
# d^2 w and d w u lie within 2^-26 of an ulp of a midpoint.
_SQUARES = ((15834249, 14117636), (12456753, 14225696))
_PRODUCTS = (
    (9513525, 10500550, 10846296),
    (13096730, 16088190, 13572184),
    (9114473, 12610029, 16611832),
)
# Of the first three, log p lies within 3e-7 of a float32 ulp of a midpoint. Of the last two, 1 / p,
# and of _Q, 1 / (1 - p), lie within 5e-8; no quotient of two float32 numbers comes much nearer.
_P = (
    0.6841573119163513,
    0.728446900844574,
    0.5355257391929626,
    0.2499999850988388,
    0.24805448949337006,
)
_Q = (0.10057907551527023, 0.23348142206668854, 0.18487399816513062)


def _next_to_a_midpoint(case: _Make) -> Iterator[Case]:
    rows, labels = zip(*_INDEX_ROWS, strict=True)
    yield case("searched, index", _CE, "float32", rows, labels, compiled=True)
    rows, dense = zip(*_DENSE_ROWS, strict=True)
    yield case("searched, dense", _CE, "float32", rows, _f32(*dense), compiled=True)
    logits, answers = zip(*_BINARY, strict=True)
    yield case("searched, binary", _BCE, "float32", logits, _f32(*answers), compiled=True)
    d, w = (np.ldexp(_f32(*column), -23) for column in zip(*_SQUARES, strict=True))
    yield case("searched, squared error", _MSE, "float32", d, 0 * d, sample_weight=w)
    d, w, u = (np.ldexp(_f32(*column), -23) for column in zip(*_PRODUCTS, strict=True))
    yield case(
        "searched, slope of the squared error",
        _MSE,
        "float32",
        d,
        0 * d,
        sample_weight=w,
        upstream=u,
        compiled=True,
    )
    p = [*_P, *_Q]
    for t in (0, 1):
        yield case(
            f"searched, binary p, target {t}", _BCE_P, "float32", p, np.full(len(p), t, np.float32)
        )
    yield case("searched, p", _CE_P, "float32", [[x, x] for x in p], [0] * len(p))
    # These float64 results lie within 1e-7 of an ulp of a midpoint.
    wide = [
        [1.0334224372276304, 0.9128064315355026, -5.407383000113005],
        [2.282598805392552, -0.22977445549098685, -0.4669192211897324],
        [-0.7012834966619796, -1.799444088361853, 6.851960148138351],
        [2.9173253146206775, -6.07607003734249, -0.37658337020497634],
    ]
    yield case("searched, index", _CE, "float64", wide, [0] * 4)
    yield case("searched, dense", _CE, "float64", wide, np.eye(3)[[0] * 4] + 0.25)
    yield case(
        "searched, binary", _BCE, "float64", [-0.00730967849436148, 1.7194979701367912], [1.0, 1.0]
    )
    p = [0.49654508061100644, 0.14138765645310747, 0.08867531689588148, 0.5755191671759234]
    yield case("searched, binary p", _BCE_P, "float64", p * 2, [0.0] * 4 + [1.0] * 4)


def _ties_broken_by_a_tiny_term(case: _Make) -> Iterator[Case]:
    """Ties broken by a term below 2^-80, the error bound of double-double arithmetic.

    Where the term can be chosen freely, it is below any practical number of digits (e^-1000).
    """
    tie = "a tie broken by next to nothing"
    yield case(f"{tie}, index", _CE, "float32", [[100000, -0.00390625]], [1], compiled=True)
    yield case(f"{tie}, index", _CE, "float64", [[2.0**53, -1]], [1])
    for dtype, bits in _PRECISION.items():
        if dtype == "float64":
            continue
        above = (1 + 2.0**-bits, 1)
        far = 1000.0
        # The loss is slightly above (1 + 2^-p) 1024; the slopes are +-(1 + 2^-p) (1 - e^-1000).
        yield case(
            f"{tie}, class weight",
            _CE.replace(class_weights=above),
            dtype,
            [[0, far], [0, 1024]],
            [0, 0],
        )
        yield case(
            f"{tie}, pos_weight",
            _BCE.replace(pos_weight=above[0]),
            dtype,
            [-1024, -far],
            _f32(1, 1),
        )
        # The slopes are 1 - 2^-(p+1) - e^-1000 and its negative.
        soft = np.array([2.0 ** -(bits + 1), 1 - 2.0 ** -(bits + 1)])
        yield case(f"{tie}, soft target", _BCE, dtype, [far, -far], soft)
        yield case(f"{tie}, dense", _CE, dtype, [[far, 0]], soft[None])
    # 3 (2^52 + 3) has 54 bits, so it is a tie in float64, and log(1 + e^z) breaks it.
    yield case(f"{tie}, pos_weight", _BCE.replace(pos_weight=3), "float64", [-(2.0**52 + 3)], [1.0])
    for dtype, bits in _PRECISION.items():
        x = [2.0 ** (1 - bits), 2.0**-bits]
        float_targets = np.zeros(2, np.float64 if dtype == "float64" else np.float32)
        yield case("a logarithm next to a tie, binary p", _BCE_P, dtype, x, float_targets)
        near_1 = 1 - 2.0 ** (1 - bits)
        yield case("a logarithm next to a tie, p", _CE_P, dtype, [[near_1, 0.5]], [0])
        clipped = _CE_P.replace(epsilon=2.0 ** (1 - bits))
        yield case("a logarithm next to a tie, clipped", clipped, dtype, [[1.0, 0.0]], [0])
    # The product has 159 bits and lies one unit of its last place away from a midpoint.
    d, w = (
        [134217729.0, 134217731, 134217735],
        [9007198986305537.0, 5671199520820793, 8166877459162927],
    )
    yield case(
        "a product next to a tie", _MSE, "float64", d, np.zeros(3), sample_weight=np.array(w)
    )


def _on_a_midpoint(case: _Make) -> Iterator[Case]:
    """Results that are midpoints themselves: more precision never decides how to round them."""
    for dtype, classes in (("bfloat16", 512), ("float16", 4096)):
        yield case("equal logits, (K - 1) / K is a tie", _CE, dtype, np.zeros((2, classes)), [0, 1])
    uniform = np.full((2, 8), 0.125, np.float32)
    yield case("equal logits, uniform targets", _CE, "float32", np.full((2, 8), 7.5), uniform)
    yield case("equal logits, two classes", _BCE, "float32", [0, 0, 0], _f32(0.5, 0.25, 1))
    for dtype, bits in _PRECISION.items():
        floats = np.float64 if dtype == "float64" else np.float32
        ulp = 2.0 ** (1 - bits)
        # 2 (p - t) has one bit too many, and the tie goes up or down to even. p - t itself is exact
        # in float64, or as the sum of two float64 numbers.
        p, t = [1 + ulp, 1 + 3 * ulp, 1 + ulp], np.array([-1, -1, 1 + ulp], floats)
        yield case("slope of the squared error", _MSE, dtype, p, t)
        # Means of 1 and 1 + ulp, and of 1 + ulp and 1 + 2 ulp.
        for terms in ([1, 1 + ulp], [1 + ulp, 1 + 2 * ulp]):
            mean = MeanSquaredError(divisor="all")
            if dtype in ("float32", "float64"):
                weight = np.array(terms, floats)
                yield case(
                    f"a mean, {terms[0] > 1}",
                    mean,
                    dtype,
                    [1, 1],
                    np.zeros(2, floats),
                    sample_weight=weight,
                )
        # w / p = 2 m + 1 has one bit too many, because w = (2 m + 1) p. Class weights are float64.
        if dtype != "float64":
            weights = (0.75 * (1 + 2.0**-bits), 0.25 * (1 + 3 * 2.0**-bits))
            spec = _CE_P.replace(class_weights=weights)
            yield case("slope of -log p", spec, dtype, [[0.75, 0.25], [0.75, 0.25]], [0, 1])
        yield case(
            "p is its target",
            _BCE_P,
            dtype,
            [0.375, 0.5, 1 - ulp],
            np.array([0.375, 0.5, 1 - ulp], floats),
        )
    yield case("one class", _CE, "float32", [[5], [-1e30]], [0, 0])
    yield case("one class, dense", _CE, "bfloat16", [[5], [3]], _f32([1], [0.3]))


def _rounded_twice(case: _Make) -> Iterator[Case]:
    """Results that are wrong in a half type if they are rounded to float32 first."""
    rows = {
        "float16": [[0.90625, 2.265625, 4.01171875], [-5.6484375, -3.154296875, -3.9140625]],
        "bfloat16": [[3.6875, -10.0625, 1.578125], [-3.78125, 3.890625, 0.42578125]],
    }
    slopes = {
        "float16": [
            [-5.58203125, 1.5859375, -2.466796875],
            [-3.806640625, -1.6787109375, 1.2529296875],
        ],
        "bfloat16": [[-4.8125, -6.875, 6.09375], [0.2216796875, 0.61328125, 3.203125]],
    }
    for dtype, first in rows.items():
        both = [*first, *slopes[dtype]]
        yield case("rounded twice, index", _CE, dtype, both, [0] * 4)
        yield case("rounded twice, dense", _CE, dtype, both, np.eye(3, dtype=np.float32)[[0] * 4])
    yield case(
        "rounded twice, binary",
        _BCE,
        "float16",
        [0.0029296875, 0.0107421875, -0.00732421875],
        _f32(0, 0, 1),
    )
    yield case("rounded twice, p", _CE_P, "float16", [[0.005340576171875, 0.5]], [0])
    p, t = [-1.3876953125, 2.896484375, 2.673828125], [2.61328125, 0.89599609375, -5.328125]
    yield case("rounded twice, squared error", _MSE, "float16", p, np.array(t, np.float16))
    # float64 weights give a loss of 1 + 2^-p, a midpoint, and of slightly more and less.
    for dtype, bits in (("float16", 11), ("bfloat16", 8)):
        weight = np.array([1 + 2.0**-bits + 2.0**-40, 1 + 2.0**-bits, 1 + 2.0**-bits - 2.0**-40])
        yield case(
            "rounded twice, weight", _MSE, dtype, [1, 1, 1], _f32(0, 0, 0), sample_weight=weight
        )


def _cancelling(case: _Make) -> Iterator[Case]:
    """Differences of nearly equal numbers, as in a model that has learnt its targets."""
    z = np.linspace(-9, 9, 12).astype(np.float32)
    fitted = (1 / (1 + np.exp(-z.astype(np.float64)))).astype(np.float32)
    yield case("fitted, binary", _BCE, "float32", z, fitted)
    yield case(
        "fitted, binary p", _BCE_P, "float32", fitted, (fitted.astype(np.float64) * (1 + 2.0**-30))
    )
    rows = z.reshape(4, 3)
    share = np.exp(rows.astype(np.float64))
    share /= share.sum(1, keepdims=True)
    yield case("fitted, dense", _CE, "float32", rows, share.astype(np.float32))
    yield case("fitted, dense of float64", _CE, "float32", rows, share)
    # The softmax equals the smoothed target: 0.9 + 0.1 / 4 at the label, 0.1 / 4 elsewhere.
    at_label = np.float32(np.log(0.925 / 0.025))
    yield case(
        "fitted, smoothed", _CE.replace(label_smoothing=0.1), "float32", [[at_label, 0, 0, 0]], [0]
    )
    # 1 - t' is 5e-13, and computing it as a subtraction from 1 would lose its digits.
    yield case(
        "1 - t'", _BCE.replace(label_smoothing=1e-12), "float32", [40, -40, 3], _f32(1, 0, 1)
    )
    clipped = _BCE_P.replace(epsilon=2.0**-20)
    edge = 1 - 2.0**-20
    p = [edge, np.nextafter(np.float32(edge), np.float32(0)), 2.0**-20, 2.0**-20 + 2.0**-43]
    yield case("p near its clip", clipped, "float32", p, _f32(1, 0.25, 0.5, 0))
    yield case(
        "dense p near its clip",
        _CE_P.replace(epsilon=2.0**-20),
        "float32",
        [p],
        _f32([0.1, 0.2, 0.3, 0.4]),
    )


def _sums(case: _Make) -> Iterator[Case]:
    """Sums that must not round their terms, and sums of infinite terms."""
    total = MeanSquaredError(reduction="sum")
    yield case(
        "a sum that a tiny term decides", total, "float32", [1, 2.0**-12, 2.0**-40], _f32(0, 0, 0)
    )
    mean = MeanSquaredError(reduction="mean")
    rows = [[0, -INFINITY], [-INFINITY, 0]]
    for dtype in ("float32", "float64"):
        weight = np.array([1, -1], _HELD[dtype])
        yield case(
            "infinite losses cancel",
            _CE.replace(reduction="sum"),
            dtype,
            rows,
            [1, 0],
            sample_weight=weight,
        )
        yield case("an infinite loss", _CE.replace(reduction="mean"), dtype, rows, [1, 1])
    weights = np.array([1.0, 2.0**-60, 2.0**-60])
    yield case(
        "a divisor of more than 53 bits",
        mean,
        "float64",
        [1, 3, 5],
        np.zeros(3),
        sample_weight=weights,
    )
    yield case(
        "a divisor of more than 53 bits",
        mean,
        "float32",
        [1, 3, 5],
        _f32(0, 0, 0),
        sample_weight=weights,
    )


def _at_the_ends_of_the_range(case: _Make) -> Iterator[Case]:
    """Subnormal results, results that overflow, and exponentials that overflow."""
    offsets = [[710, 700], [722, 712], [-740, -741], [-760, -750.5], [87.5, 88.5], [-103, -104]]
    yield case(
        "exponentials out of range", _CE, "float32", offsets, [0, 1, 0, 1, 0, 1], compiled=True
    )
    one_hot = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0, 1]]
    yield case("exponentials out of range, dense", _CE, "float32", offsets, one_hot)
    yield case("exponentials out of range", _CE, "float64", offsets, [0, 1, 0, 1, 0, 1])
    yield case(
        "logits whose difference overflows",
        _CE,
        "float64",
        [[1e308, -1e308], [1e308, -1e308]],
        [0, 1],
    )
    yield case(
        "logits whose difference overflows", _CE, "float32", [[3e38, -3e38], [3e38, -3e38]], [0, 1]
    )
    gaps = {
        "float16": (9.75, 16, 17.5),
        "bfloat16": (88, 92, 92.5),
        "float32": (88, 100, 104),
        "float64": (709, 740, 746),
    }
    for dtype, gap in gaps.items():
        rows = [[x, 0] for x in gap]
        yield case("subnormal results", _CE, dtype, rows, [0, 0, 0])
        yield case("subnormal results, binary", _BCE, dtype, gap, np.ones(3, np.float32))
    tiny = 2.0**-149
    yield case(
        "subnormal results, squared error",
        _MSE,
        "float32",
        [3 * tiny, 2.0**-75, 2.0**-74],
        _f32(tiny, 0, 0),
    )
    # The largest float16 is 65504, and results from 65520 on round to infinity.
    weight = _f32(65519.99609375, 65520, 65504)
    yield case("overflow", _MSE, "float16", [1, 1, 1], _f32(0, 0, 0), sample_weight=weight)
    yield case("overflow, squared error", _MSE, "float16", [255.875, 256, 0], _f32(0, 0, 65520))
    weight = 2.0**64 * np.array([1 - 2.0**-25 - 2.0**-50, 1 - 2.0**-25])
    yield case("overflow", _MSE, "float32", [2.0**32, 2.0**32], _f32(0, 0), sample_weight=weight)
    yield case("results of 0", _CE, "float32", [[200, 0, 0], [1e30, 0, -1e30]], [0, 0])

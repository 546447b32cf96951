"""The cases of the binary cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from unifiedloss.conformance.case import (
    BadCall,
    Case,
    Fusible,
    LossCases,
    proving,
    refused,
    rng_of,
    round_to,
)
from unifiedloss.conformance.data import F32_TINY, INF, NAN, ONE_HOT, P, X, f32, ints
from unifiedloss.conformance.product import (
    COMMON,
    Row,
    companions,
    draws,
    element_weights,
    fields_of,
    product,
    rule_rows,
    source,
)
from unifiedloss.losses.binary_cross_entropy.hard import hard_cases
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss

mean_case = proving("divisor")
shape_case = proving("strict-shapes")
clip_case = proving("epsilon", "tiny-probabilities", "gradient-probabilities")
bad_p_case = proving("bad-probability", "bad-values")
above_case = proving("probabilities-above-1")
empty_case = proving("tiny-sample-weights", "on-empty")
entry_case = proving("tiny-entries")
smoothing_case = proving("tiny-smoothing")
nan_case = proving("nan-targets-and-weights")
read_case = proving("what-is-read", "pos-weight")
zero_weighted_case = proving("zero-weighted")
logit_case = proving("infinite-binary-logits", "gradient-binary")
bad_target_case = proving("bad-target", "bad-values")
dtype_case = proving("target-dtypes")
preset_case = proving("epsilon-presets")
added_case = proving("epsilon-added")
pos_weight_case = proving("pos-weight", "axis")
small_weight_case = proving("pos-weight", "gradient-binary")
element_case = proving("element-weights", "zero-weighted")
poisoned_case = proving("average-last-axis", "nan-targets-and-weights", "bad-target", "bad-values")
unknown_case = proving("element-weights", "nan-targets-and-weights")
averaged_case = proving("average-last-axis")
cast_case = proving("dtype")

_MEAN = {"reduction": "mean"}


def _bce(**fields: Any) -> BinaryCrossEntropyLoss:
    defaults: dict[str, Any] = {"from_logits": True, "reduction": "none"}
    return BinaryCrossEntropyLoss(**defaults | fields)


def edge_cases() -> Iterator[Case]:
    """The known disagreements between frameworks, and the boundaries of each rule."""
    yield mean_case("35 weighted binary", _bce(**_MEAN), f32(0, 0), f32(1, 0), f32(1, 3))
    yield from _probabilities()
    yield from _tiny()
    yield from _logits()
    yield from _targets()
    yield shape_case("20 column", _bce(**_MEAN), f32([0.5], [1]), f32([1], [0]))
    yield from _limits()


def _probabilities() -> Iterator[Case]:
    """Clipping at 0 and at epsilon, and numbers above 1."""
    for epsilon in (0.0, 1e-7, 0.25):
        binary = f32(
            0,
            1,
            0.25,
            0.75,
            1e-7,
            np.nextafter(np.float32(1), np.float32(0)),
            F32_TINY,
            F32_TINY / 2,
        )
        for t in (0.0, 1.0, 0.3):
            spec_b = _bce(from_logits=False, epsilon=epsilon)
            yield clip_case(
                f"10 binary p, epsilon {epsilon}, target {t}",
                spec_b,
                binary,
                np.full(8, t, np.float32),
            )
    yield bad_p_case(
        "36 logits as binary probabilities",
        _bce(from_logits=False),
        f32(-0.5, 0.5, 2),
        f32(1, 1, 1),
    )
    half = f32(1 + 2.0**-10, 1 + 2.0**-9)
    yield above_case(
        "36 p above 1 in float16", _bce(from_logits=False), half, f32(1, 1), dtype="float16"
    )


def _limits() -> Iterator[Case]:
    """Numbers next to the limit of a rule, on the side where a small mistake shows."""
    p = _bce(from_logits=False)
    for dtype, largest in (("float32", 1 + 2.0**-21), ("float16", 1 + 2.0**-10)):
        yield above_case(
            f"36 binary p at the limit, {dtype}", p, f32(largest, 1), f32(1, 1), dtype=dtype
        )
    # -log of the first is 99.995, so the clamp at 100 does not reach it.
    p_near_clamp = np.array([3.74e-44, 3.70e-44])
    yield preset_case(
        "10 torch, next to the clamp",
        p.replace(epsilon="torch"),
        p_near_clamp,
        np.ones(2),
        dtype="float64",
    )
    # Half of this is less than the smallest normal number, so nothing costs infinitely much.
    share = p.replace(label_smoothing=1.5 * F32_TINY)
    yield smoothing_case(
        "share of smoothing below the smallest normal number, binary", share, f32(0, 1), f32(0, 1)
    )


def _tiny() -> Iterator[Case]:
    """Numbers that some frameworks flush to 0, and NaN weights."""
    half, tiny = F32_TINY / 2, F32_TINY
    for dtype, small in (("float32", half), ("float64", 1e-50), ("float64", 1e-40)):
        weight = np.array([small, 1, -small, 2], dtype)
        spec_b = _bce(on_empty="zero", **_MEAN)
        yield empty_case(
            f"weights {small:.3g} of {dtype} are an empty mean",
            spec_b,
            f32(NAN, 1),
            f32(2, 1),
            weight[[0, 2]],
        )
    for from_logits in (True, False):
        kind = source(from_logits)
        for small in (half, -half, tiny):
            binary = f32(-INF, INF, NAN, 0) if from_logits else f32(0, 1, NAN, 0.5)
            spec_b = _bce(from_logits=from_logits)
            yield entry_case(
                f"binary target {small:.3g}, {kind}", spec_b, binary, np.full(4, small, np.float32)
            )
            spec_b = spec_b.replace(pos_weight=(abs(float(small)), 1, 2, 3))
            yield entry_case(
                f"pos_weight {small:.3g}, {kind}", spec_b, binary, np.ones(4, np.float32)
            )
        for smoothing in (1e-38, 1e-9, 1e-6, 1e-50):
            binary = f32(-INF, INF, -INF, INF, 3) if from_logits else f32(0, 1, 0, 1, 0.5)
            spec_b = _bce(from_logits=from_logits, label_smoothing=smoothing)
            yield smoothing_case(
                f"smoothing {smoothing}, {kind}, binary", spec_b, binary, f32(0, 0, 1, 1, 1)
            )
    for divisor in ("weights", "all", "nonzero"):
        fields = {"from_logits": False, "divisor": divisor} | _MEAN
        weight = f32(1, NAN, 0, 2)
        yield nan_case(
            f"NaN sample weight, binary p, {divisor}",
            _bce(**fields),
            P[:, 0],
            ONE_HOT[:, 0],
            weight,
        )
    yield read_case(
        "pos_weight 0 hides no NaN p",
        _bce(from_logits=False, pos_weight=0),
        f32(NAN, NAN),
        f32(1, 0),
    )


def _logits() -> Iterator[Case]:
    """Infinite, large and NaN logits; at 0 the gradient is 0.5."""
    yield zero_weighted_case(
        "32 NaN binary under weight 0",
        _bce(**_MEAN),
        f32(NAN, INF, 1),
        f32(0, NAN, 1),
        f32(0, 0, 2),
    )
    logits = f32(0, -0.0, 100, -100, INF, -INF, NAN, 1e-30, -1e-30, 20, -20, 1e30)
    for t in (0.0, 1.0, 0.5):
        for extra in ({}, {"pos_weight": 3.0}, {"pos_weight": 0.0}, {"label_smoothing": 0.2}):
            label = ", ".join(f"{k} {v}" for k, v in extra.items())
            yield logit_case(
                f"33 binary logits, target {t} {label}",
                _bce(**extra),
                logits,
                np.full(12, t, np.float32),
            )


def _targets() -> Iterator[Case]:
    """NaN targets, targets out of range, and targets of every dtype."""
    yield nan_case("NaN binary target", _bce(), f32(0, 1), f32(NAN, 1))
    yield bad_target_case("binary target out of range", _bce(), f32(0, 1, 2), f32(-0.25, 1.5, 1))
    yield shape_case("binary scalar", _bce(), np.array(0.5, np.float32), np.array(1.0, np.float32))
    for dtype in ("bool", "int8", "int64", "uint8", "float64", "float16"):
        answers = ints(0, 1, 1, dtype=dtype)
        name = answers.dtype.name
        yield dtype_case(f"binary targets of {name}", _bce(**_MEAN), f32(0, 1, 2), answers)


def marked_cases() -> Iterator[Case]:
    """The rules that exist for other libraries' losses; one case of each is compiled.

    A formula that compilers tend to rewrite, log(p + epsilon), runs where compilation is costly.
    """
    yield from _clipped()
    yield from _element_weights()
    yield from _averaged()
    yield from _dtype()


def _clipped() -> Iterator[Case]:
    """Clip p, clamp log p, or add epsilon to p, each with its gradient."""
    p = np.array([[0, 1, 0.25, 0.75, 1e-20, 1e-7, 1 - 1e-7]] * 3)
    answers = np.broadcast_to(f32([0], [1], [0.25]), p.shape)
    spec = _bce(from_logits=False, epsilon="keras")
    for dtype in ("float32", "float16", "bfloat16"):
        single = dtype == "float32"
        yield preset_case(
            f"09 keras, {dtype}", spec, round_to(p, dtype), answers, dtype=dtype, compiled=single
        )
    # In half types the upper bound is 1, and a number above it by rounding is read as 1.
    for dtype, step in (("float16", 2.0**-10), ("bfloat16", 2.0**-7)):
        above = round_to(np.array([1 + step, 1.0] * 2), dtype)
        yield preset_case(
            f"09 keras, above 1, {dtype}", spec, above, f32(1, 1, 0.25, 0.25), dtype=dtype
        )
    # Leave out the values next to a bound.
    values = round_to(p[:, :5], "float16")
    yield preset_case(
        "09 sklearn", spec.replace(epsilon="sklearn"), values, answers[:, :5], dtype="float16"
    )
    torch = spec.replace(epsilon="torch")
    yield preset_case("10 torch", torch, round_to(p, "float32"), answers, compiled=True)
    # In float64, log p is clamped at 1e-45 and not at 1e-43. Below 1e-12 the slope is not 1 / p.
    deep = np.array(
        [[0, 1, 1e-45, 1e-43, 1e-13, 2e-12, 1 - 2.0**-53, 1 - 2.0**-40, 1 - 2.0**-30, 0.5]] * 3
    )
    wide = np.broadcast_to(np.array([[0.0], [1], [0.25]]), deep.shape)
    yield preset_case("10 torch, float64", torch, deep, wide, dtype="float64")
    smoothed = torch.replace(label_smoothing=0.1, reduction="mean", divisor="all")
    yield preset_case(
        "10 torch, smoothed", smoothed, f32(0, 1, 0.5, NAN), f32(1, 0, 1, 0), f32(1, 2, 3, 0)
    )
    values = np.tile(f32(0, 1, 0.25, 1e-7, 1 + 2.0**-22, F32_TINY / 2, NAN), (3, 1))
    added = _bce(from_logits=False, epsilon=1e-7, epsilon_added=True)
    yield added_case("09 epsilon added", added, values, answers, compiled=True, representative=True)
    large = added.replace(epsilon=0.375)
    yield added_case(
        "09 epsilon added, large", large, round_to(p, "bfloat16"), answers, dtype="bfloat16"
    )


def _element_weights() -> Iterator[Case]:
    """Small weights, the axis of pos_weight, and the element weights of torch's BCELoss."""
    z, answers = f32([0, 1.25, -1.25, 30], [0, -20, 3, -100]), f32([1, 1, 1, 1], [0, 0.5, 1, 0])
    for small in (1e-7, (1e-7, 1e-9, 1e-3, 1e-7)):
        yield small_weight_case(f"34 small pos_weight {small}", _bce(pos_weight=small), z, answers)
    cube = (np.arange(12, dtype=np.float32).reshape(2, 3, 2) - 5) / 4
    weighted = _bce(pos_weight=(1.0, 0.0, 2.5), axis=1)
    yield pos_weight_case(
        "pos_weight along axis 1", weighted, cube, np.asarray(cube > 0.3), compiled=True
    )
    hidden = _bce(element_weights=(1, 0))
    odd, answers = f32([0.5, NAN], [0.25, 7]), f32([1, -3], [0, NAN])
    yield element_case(
        "35 element weight 0 hides everything", hidden.replace(from_logits=False), odd, answers
    )
    bad = _bce(element_weights=((1,), (2,)), reduction="mean")
    yield element_case("35 element weights, bad element", bad, odd, f32([1, 0], [0, 2]))
    unknown = hidden.replace(reduction="mean")
    yield unknown_case(
        "35 NaN weight beside others", unknown, X[:2, :2], ONE_HOT[:2, :2], f32(NAN, 1)
    )


def _averaged() -> Iterator[Case]:
    """Means over the last axis, which Keras takes before it weights and reduces."""
    rows = _bce(average_last_axis=True, element_weights=(1, 2, 0))
    one = ONE_HOT[:2].reshape(1, 2, 3)
    yield averaged_case(
        "24 averaged rows", rows, X[:2].reshape(1, 2, 3), one, f32([3, 0.5]), compiled=True
    )
    keras = _bce(from_logits=False, average_last_axis=True, epsilon="keras")
    yield averaged_case(
        "21 averaged, bad element", keras, f32([0.5, 2], [0.5, 0.25]), f32([1, 1], [1, 0])
    )
    mean = keras.replace(reduction="mean", on_empty="zero")
    yield averaged_case(
        "21 averaged, NaN dropped",
        mean,
        f32([0.5, NAN], [0, 1]),
        np.eye(2, dtype=bool),
        f32(0, 2),
    )
    yield averaged_case("21 averaged, empty mean", mean, P[:2], ONE_HOT[:2], f32(0, 0))
    # One bad element makes every derivative of its row NaN, if it has weight.
    answers = f32([NAN, 1, 0], [0, 7, 0], [1, 0, NAN])
    for from_logits, values in ((True, X[:3]), (False, P[:3])):
        some = _bce(from_logits=from_logits, average_last_axis=True, element_weights=(1, 2, 0))
        source = "logits" if from_logits else "p"
        yield poisoned_case(f"21 averaged, bad targets, {source}", some, values, answers)
        # In a weighted mean they make the divisor NaN.
        yield poisoned_case(
            f"21 averaged, bad targets, {source}, mean",
            some.replace(reduction="mean", divisor="present"),
            values,
            answers,
            f32(1, 2, 0),
            compiled=from_logits,
        )
    # Without element weights NumPy has compiled loops, which must not take rows for elements.
    for reduction in ("none", "sum"):
        plain = _bce(average_last_axis=True, reduction=reduction)
        yield averaged_case(f"24 averaged rows, no weights, {reduction}", plain, X, ONE_HOT)


def _dtype() -> Iterator[Case]:
    """A spec that names a dtype casts all its inputs to it."""
    spec, small = _bce(dtype="float32"), np.array([1, 2, 3, 0], np.float16)
    yield cast_case(
        "39 float16 in float32",
        spec,
        round_to(X, "float16"),
        ONE_HOT,
        small,
        dtype="float16",
        compiled=True,
    )
    # The predictions are float64, so that JAX runs the case with x64 enabled.
    beside = spec.replace(dtype="float64")
    yield cast_case(
        "39 float32 beside float64",
        beside,
        X.astype(np.float64),
        ONE_HOT,
        f32(1, 2, 3, F32_TINY / 2),
        dtype="float64",
    )
    p, t = np.array([1e-40, 2.0**-126, 0.5]), np.array([1, 1e-40, 1e-50])
    yield cast_case(
        "39 subnormal in float32", spec.replace(from_logits=False), p, t, dtype="float64"
    )
    # These are bad values in float64, and none in float32.
    p, t = np.array([0.5, 1 + 2.0**-21 + 2.0**-40, 0.5]), np.array([1 + 2.0**-52, 1, -1e-40])
    yield cast_case(
        "39 good in float32", spec.replace(from_logits=False), p, t, dtype="float64", compiled=True
    )


def product_cases() -> Iterator[Case]:
    """Logits and probabilities, with each pair of fields, dtypes and shapes."""
    for from_logits in (True, False):
        axes = COMMON | {
            "shape": ((6,), (3, 4), (2, 3, 4), ()),
            "pos_weight": (None, 3.0, "given"),
            "label_smoothing": (0.0, 0.1, 1.0),
            "epsilon": (0.0,) if from_logits else (0.0, 1e-7, 0.2),
            "target_dtype": ("float32", "float64", "int64", "bool"),
        }
        yield from product(f"{source(from_logits)} binary", axes, 12, partial(_case, from_logits))


def _case(from_logits: bool, name: str, row: Row) -> Case:
    rng = rng_of(name)
    shape = row["shape"]
    predictions = np.asarray(rng.normal(scale=3, size=shape))
    if not from_logits:
        predictions = 1 / (1 + np.exp(-predictions))
    targets = np.asarray(rng.random(shape))
    if not row["target_dtype"].startswith("float"):
        targets = np.asarray(targets < 0.5)
    pos_weight: Any = row["pos_weight"]
    if pos_weight == "given":
        pos_weight = rng.uniform(0.5, 3, shape[-1]) if shape else 0.5
    several = np.ndim(pos_weight) > 0
    spec = BinaryCrossEntropyLoss(
        from_logits=from_logits,
        pos_weight=pos_weight,
        axis=-1 if several and len(shape) > 2 else None,
        **fields_of(row, "label_smoothing", "epsilon"),
    )
    common = companions(rng, row, shape)
    return Case(
        name,
        spec,
        round_to(predictions, row["dtype"]),
        targets.astype(row["target_dtype"]),
        **common,
    )


def rule_cases() -> Iterator[Case]:
    """Element weights and averages."""
    for name, row in rule_rows("elements", (0,)):
        rng = rng_of(name)
        shape: tuple[int, ...] = row["shape"]
        fields = fields_of(row, "scale", "average_last_axis") | {
            "element_weights": element_weights(rng, row)
        }
        # The first numbers were the predictions of the other variant, and no case may change.
        _, targets = rng.normal(size=shape), rng.random(shape).astype(np.float32)
        predictions = rng.uniform(0.05, 0.95, shape)
        fields["pos_weight"] = rng.uniform(0.5, 2, shape[1])
        spec = BinaryCrossEntropyLoss(epsilon="keras", axis=1, **fields)
        positions = shape[:-1] if row["average_last_axis"] else shape
        yield Case(
            name,
            spec,
            round_to(predictions, row["dtype"]),
            targets,
            **companions(rng, row, positions),
        )


def random_cases() -> Iterator[Case]:
    """Soft targets."""
    for draw in draws(range(0, 40, 4)):
        spec = BinaryCrossEntropyLoss(from_logits=True, reduction=draw.reduction)
        targets = draw.rng.random(draw.predictions.shape).astype(np.float32)
        yield Case(draw.name, spec, draw.predictions, targets, dtype=draw.dtype)


def bad_calls() -> Iterator[BadCall]:
    """Calls that must fail."""
    z, t = X, ONE_HOT
    bce = BinaryCrossEntropyLoss(from_logits=True)
    yield refused("strict-shapes")("20 binary column against vector", bce, f32([1], [2]), f32(1, 0))
    yield refused("pos-weight")("wrong number of pos_weight", bce.replace(pos_weight=(1, 2)), z, t)
    yield refused("pos-weight")(
        "pos_weight along another axis", bce.replace(pos_weight=(1, 2, 3), axis=0), z, t
    )
    yield refused("pos-weight")(
        "pos_weight along no axis", bce.replace(pos_weight=(1, 2, 3), axis=2), z, t
    )
    yield refused("pos-weight")(
        "axis of pos_weight not named",
        bce.replace(pos_weight=(3, 1)),
        np.zeros((2, 2, 2), np.float32),
        np.zeros((2, 2, 2), np.float32),
    )
    yield refused("bad-probability", "bad-values")(
        "binary logits as probabilities", BinaryCrossEntropyLoss(), z, t, reads=True
    )
    yield refused("bad-target", "bad-values")("binary target 2", bce, z, t * 2, reads=True)


def fusible() -> Iterator[Fusible]:
    """Logits of either sign, and probabilities up to 1, where 1 - p must be 0 and not below."""
    rng = rng_of("fused/binary")
    targets = rng.choice(f32(0, 0.25, 1), (16, 16))
    logits = rng.normal(scale=5, size=(16, 16)).astype(np.float32)
    spec = BinaryCrossEntropyLoss(from_logits=True, reduction="none")
    yield Fusible("binary", spec, logits, lambda _: targets, ("binary-cross-entropy",))
    # Every second logit is so large that the loss of its target is far below a rounding of it.
    confident = np.where(np.arange(16) % 2, 4 * logits, logits)
    rules = ("binary-cross-entropy", "never-negative")
    ways = ("product with 1/3",)
    yield Fusible(
        "binary, hard", spec, confident, lambda x: (x > 0).astype(np.float32), rules, ways
    )
    probabilities = rng.choice(f32(0.125, 0.5, 0.9, 1), (16, 16))
    yield Fusible(
        "binary, probabilities",
        BinaryCrossEntropyLoss(reduction="none"),
        probabilities,
        lambda _: targets,
        ("binary-cross-entropy", "probabilities-above-1"),
        ("product with 1/3", "product with 1000"),
    )


CASES = LossCases(
    edge_cases=edge_cases,
    bad_calls=bad_calls,
    marked_cases=marked_cases,
    product_cases=product_cases,
    rule_cases=rule_cases,
    random_cases=random_cases,
    hard_cases=hard_cases,
    fusible=fusible,
)

"""The conformance suite can fail: its cases catch adapters that are each wrong in one thing."""

from __future__ import annotations

import dataclasses
import types
from functools import cache
from typing import Any

import numpy as np
import pytest

from unifiedloss import conformance, pipeline, registry
from unifiedloss.adapter import Adapter
from unifiedloss.conformance import checks
from unifiedloss.conformance.cases import all_cases, bad_calls
from unifiedloss.conformance.softmax import bad_softmax_calls, softmax_cases
from unifiedloss.errors import ShapeError
from unifiedloss.evaluator import Evaluator
from unifiedloss.inputs import Inputs

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.framework("torch")

TORCH = registry.adapter("torch")
_EXPECTED: dict[str, Any] = {}


@cache
def every() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return all cases, and all calls that must fail; both are made once."""
    return (*all_cases(), *softmax_cases()), (*bad_calls(), *bad_softmax_calls())


def failures(adapter: Adapter, *words: str) -> dict[str, str]:
    """Return the cases that an adapter fails eagerly, with the failures, by name.

    Args:
        adapter: the adapter to run.
        words: run only the cases whose name contains one of these.
    """
    mode = adapter.modes()["eager"]
    found = {}
    cases, calls = every()
    for case in cases:
        if any(word in case.name for word in words):
            if case.name not in _EXPECTED:
                _EXPECTED[case.name] = case.expected()
            found[case.name] = "; ".join(
                checks.check_case(adapter, mode, case, _EXPECTED[case.name]).failures
            )
    for call in calls:
        if any(word in call.name for word in words):
            found[call.name] = "; ".join(checks.check_bad_call(adapter, mode, call).failures)
    assert found, "no case has such a name"
    return {name: what for name, what in found.items() if what}


def variant(module: Any, **changes: Any) -> Any:
    """Return a copy of a module with some functions replaced."""
    copy = types.SimpleNamespace(
        **{name: value for name, value in vars(module).items() if not name.startswith("__")}
    )
    vars(copy).update(changes)
    return copy


class Long(type(TORCH)):  # type: ignore[misc]
    """The torch adapter without its fused path; the wrong adapters below change one part of it."""

    def loss(
        self,
        spec: Any,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        divisor: Any = None,
    ) -> Any:
        """Compute the loss as the base class does."""
        return Adapter.loss(self, spec, predictions, targets, sample_weight, mask, divisor)


class CountsAll(Long):
    """Divides a mean by the number of all positions, whatever the divisor of the spec."""

    def compute(self, plan: Any, *tensors: Any, checked: bool) -> Any:
        """Divide the sum by the wrong count."""
        e = Evaluator(self.ops, self.kernels, plan, checked=checked)
        found = pipeline.terms(e, Inputs(*tensors))
        if plan.spec.reduction != "mean":
            return e.reduce(found)
        return (found.losses.sum() / max(plan.count, 1)).to(self.ops.DTYPES[plan.result_dtype])


class NoShift(Long):
    """Takes the exponentials of the logits without subtracting the largest."""

    kernels = variant(
        TORCH.kernels,
        cross_entropy=lambda z, y, axis: z.exp().sum(axis).log() - TORCH.ops.take_class(z, y, axis),
    )


class HalfSums(Long):
    """Sums in half precision."""

    ops = variant(TORCH.ops, sum=lambda x: x.half().sum().to(x.dtype))


class Detached(Long):
    """Gives no gradient where the predictions are probabilities."""

    ops = variant(TORCH.ops, log=lambda x: x.detach().log() + 0 * x)


class Wraps(Long):
    """Counts a negative class index from the end."""

    def to_tensors(self, predictions: Any, *companions: Any) -> Any:
        """Wrap negative class indices."""
        p, t, *rest = super().to_tensors(predictions, *companions)
        if not t.dtype.is_floating_point and t.ndim < p.ndim:
            t = torch.where((t < 0) & (t >= -p.shape[-1]), t + p.shape[-1], t)
        return p, t, *rest


class Clamps(Long):
    """Clamps the logarithm at -100, as torch.nn.BCELoss does."""

    ops = variant(
        TORCH.ops, log=lambda x: x.log().clamp(min=-100), log1p=lambda x: x.log1p().clamp(min=-100)
    )


class LateMask(Long):
    """Masks the loss, but not the inputs of its computation."""

    ops = variant(TORCH.ops, where=lambda c, x, y: torch.where(c, x, y) if x.ndim < 2 else x)


class AssumesOne(Long):
    """Assumes in the gradient that dense targets sum to 1, like TensorFlow (tensorflow#60314)."""

    class _LogSoftmax(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, z: Any, axis: int) -> Any:
            result = z.log_softmax(axis)
            ctx.save_for_backward(result)
            return result

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            (result,) = ctx.saved_tensors
            return g + result.exp(), None

    kernels = variant(TORCH.kernels, log_softmax=_LogSoftmax.apply)


class Squeezes(Long):
    """Drops axes of length 1 of the targets."""

    def to_tensors(self, predictions: Any, *companions: Any) -> Any:
        """Squeeze the targets."""
        p, t, *rest = super().to_tensors(predictions, *companions)
        return (
            p,
            (
                t.squeeze(-1)
                if t.ndim == p.ndim and t.shape[-1:] == (1,) and p.shape[-1] != 1
                else t
            ),
            *rest,
        )


class TrailingWeights(Long):
    """Aligns sample weights to the trailing axes, as broadcasting does."""

    ops = variant(TORCH.ops, align=lambda x, _: x)


class NarrowLabels(Long):
    """Narrows class indices to 8 bits."""

    def to_tensors(self, predictions: Any, *companions: Any) -> Any:
        """Cast class indices to int8 and back."""
        p, t, *rest = super().to_tensors(predictions, *companions)
        return (
            p,
            (t.to(torch.int8).to(t.dtype) if t.dtype is torch.int64 and t.ndim < p.ndim else t),
            *rest,
        )


class NoMask(Long):
    """Ignores the mask."""

    def compute(self, plan: Any, *tensors: Any, checked: bool) -> Any:
        """Compute without the mask, which is the last tensor."""
        return super().compute(plan, *tensors[:-1], None, checked=checked)


class PassesClip(Long):
    """Passes the gradient through the clip of probabilities."""

    def loss(self, spec: Any, predictions: Any, *companions: Any) -> Any:
        """Clip in a way that autograd does not see."""
        epsilon = getattr(spec, "epsilon", 0.0)
        if epsilon:
            predictions = (
                predictions + (predictions.clamp(epsilon, 1 - epsilon) - predictions).detach()
            )
            spec = spec.replace(epsilon=0.0)
        return super().loss(spec, predictions, *companions)


class WrongDtype(Long):
    """Returns float64, whatever the dtype of the predictions."""

    def compute(self, plan: Any, *tensors: Any, checked: bool) -> Any:
        """Return the right number in the wrong dtype."""
        return super().compute(plan, *tensors, checked=checked).double()


class WrongError(Long):
    """Raises ShapeError for every bad value."""

    def _check(self, plan: Any, *tensors: Any) -> None:
        try:
            super()._check(plan, *tensors)
        except ValueError as error:
            raise ShapeError(str(error)) from error


class NegativeZero(Long):
    """Gives -0 where a position is dropped."""

    ops = variant(
        TORCH.ops,
        where=lambda c, x, y: torch.where(c, x, -0.0 if isinstance(y, float) and y == 0 else y),
    )


class ForgetsSmoothing(Long):
    """Ignores label smoothing."""

    def plan(self, spec: Any, *tensors: Any) -> Any:
        """Return the plan of a changed spec."""
        return super().plan(
            spec.replace(label_smoothing=0.0) if hasattr(spec, "label_smoothing") else spec,
            *tensors,
        )


class SmallNumbers(Long):
    """Does not read subnormal probabilities as 0."""

    def compute(
        self, plan: Any, p: Any, t: Any, sample_weight: Any, mask: Any, *, checked: bool
    ) -> Any:
        """Compute with a plan whose smallest number is 0."""

        class Limitless:
            tiny = 0.0

            def __getattr__(self, name: str) -> Any:
                return getattr(plan, name)

        return super().compute(Limitless(), p, t, sample_weight, mask, checked=checked)


class Unrounded(Long):
    """Clips at 1e-7 and 1 - 1e-7 in float64; Keras rounds both to the predictions' dtype."""

    def plan(self, spec: Any, *tensors: Any) -> Any:
        """Return the plan with these bounds."""
        plan = super().plan(spec, *tensors)
        keras = getattr(spec, "epsilon", None) == "keras"
        return dataclasses.replace(plan, bounds=(1e-7, 1e-7)) if keras else plan


class Divides(Long):
    """Renormalizes probabilities before the clip, whatever the spec says."""

    def plan(self, spec: Any, *tensors: Any) -> Any:
        """Return the plan of a changed spec."""
        late = getattr(spec, "renormalize", None) == "after_clip"
        return super().plan(spec.replace(renormalize="before_clip") if late else spec, *tensors)


class ScaledDivisor(Long):
    """Ignores the scale of a mean, as if it scaled the divisor too."""

    def plan(self, spec: Any, *tensors: Any) -> Any:
        """Return the plan of a changed spec."""
        mean = spec.reduction == "mean" and hasattr(spec, "scale")
        return super().plan(spec.replace(scale=1.0) if mean else spec, *tensors)


class SumsRows(Long):
    """Sums along the last axis, where it should average."""

    def compute(self, plan: Any, *tensors: Any, checked: bool) -> Any:
        """Multiply each average by its divisor."""
        size = plan.shape[-1] if plan.average_last_axis and plan.spec.reduction != "mean" else 1
        return super().compute(plan, *tensors, checked=checked) * size


class ClampDerivative(Long):
    """Clamps the logarithm at -100 with epsilon="torch", and uses the derivative of the clamp."""

    def loss(self, spec: Any, *tensors: Any) -> Any:
        """Compute with the operations that clamp."""
        if getattr(spec, "epsilon", 0.0) != "torch":
            return super().loss(spec, *tensors)
        return Clamps().loss(spec.replace(epsilon=0.0), *tensors)


class OneDivisor(Long):
    """Uses the divisor "weights" in place of "label_weights"."""

    def plan(self, spec: Any, *tensors: Any) -> Any:
        """Return the plan of a changed spec."""
        return super().plan(
            spec.replace(divisor="weights") if spec.divisor == "label_weights" else spec, *tensors
        )


class WeighsEntries(Long):
    """Multiplies the entries of the smoothed target by class weights, whatever the spec says."""

    def plan(self, spec: Any, *tensors: Any) -> Any:
        """Return the plan of a changed spec."""
        elsewhere = hasattr(spec, "class_weighting")
        return super().plan(
            spec.replace(class_weighting="entries") if elsewhere else spec, *tensors
        )


class CountsElements(Long):
    """Counts the two elements with a weight of each row, and not the row."""

    ops = variant(TORCH.ops, count=lambda x, dtype: 2 * TORCH.ops.count(x, dtype))


class KeepsDtype(Long):
    """Computes in the dtype of the predictions, and ignores the dtype of the spec."""

    def plan(self, spec: Any, *tensors: Any) -> Any:
        """Return the plan of a changed spec."""
        return super().plan(
            spec.replace(dtype=None) if getattr(spec, "dtype", None) else spec, *tensors
        )


class ReadsEverything(Long):
    """Multiplies log-probabilities by a weight of 0, and so reads them."""

    ops = variant(
        TORCH.ops, where=lambda c, x, y: x if x.ndim == 1 and y == 0.0 else torch.where(c, x, y)
    )


class Flushes(Long):
    """Flushes softmax to 0 below twice the smallest normal number, as TensorFlow without XLA."""

    kernels = variant(
        TORCH.kernels,
        softmax=lambda z, axis: torch.where((p := z.softmax(axis)) < 2.0**-125, 0.0 * p, p),
    )


class NoShiftSoftmax(Long):
    """Computes softmax from exponentials without subtracting the largest logit."""

    kernels = variant(
        TORCH.kernels, softmax=lambda z, axis: z.exp() / z.exp().sum(axis, keepdim=True)
    )


class LastAxis(Long):
    """Computes softmax over the last axis, whatever the argument axis."""

    kernels = variant(TORCH.kernels, softmax=lambda z, _: z.softmax(-1))


class TinySoftmax(Long):
    """Keeps the subnormal results of torch's softmax."""

    def softmax(self, logits: Any, axis: int | None) -> Any:
        """Return torch's softmax, without the rule that subnormal results are 0."""
        super().softmax(logits, axis)
        return logits.softmax(-1 if axis is None else axis)


class FlatSoftmax(Long):
    """Treats the sum of exponentials as a constant in the gradient of softmax."""

    kernels = variant(
        TORCH.kernels, softmax=lambda z, axis: (z - z.logsumexp(axis, keepdim=True).detach()).exp()
    )


CAUGHT = [
    (
        CountsAll,
        ("01 class weights", "04 ignored label", "03 sample weights"),
        "edge/01 class weights, index",
        "loss is",
    ),
    (NoShift, ("28 ",), "edge/28 offset 1e5, index, smoothing 0.0", "is inf, should be 1.55"),
    (HalfSums, ("26 float16 mean", "21 sum", "random/"), "random/2026.003", "loss is"),
    (
        Detached,
        ("09 p=0", "12 unnormalised"),
        "edge/12 unnormalised",
        "gradient to the predictions",
    ),
    (Wraps, ("07 negative", "label -1"), "label -1", "should raise BadValueError"),
    (
        Clamps,
        ("10 binary p", "09 p=0, epsilon 0.0"),
        "edge/10 binary p, epsilon 0.0, target 1.0",
        "loss[",
    ),
    (LateMask, ("32 NaN",), "edge/32 NaN logits masked", "is nan"),
    (
        AssumesOne,
        ("31 dense",),
        "edge/31 dense rows do not sum to 1",
        "gradient to the predictions",
    ),
    (Squeezes, ("labels as a column",), "labels as a column", "should raise ShapeError"),
    (TrailingWeights, ("23 ", "24 "), "edge/24 weights scale examples", "loss[0, 1] is 3.0"),
    (
        NarrowLabels,
        ("25 label", "int8", "far label", "uint8"),
        "edge/25 label 257 in bfloat16",
        "loss is 10.0",
    ),
    (NoMask, ("32 NaN logits masked", "scalar mask"), "edge/scalar mask, false", "should be nan"),
    (
        PassesClip,
        ("09 p=0, epsilon 0.25",),
        "edge/09 p=0, epsilon 0.25, class 0",
        "gradient to the predictions",
    ),
    (WrongDtype, ("01 class", "42 "), "edge/01 class weights, index", "dtype float64, should be"),
    (WrongError, ("label 3", "logits as probabilities"), "label 3", "raised ShapeError"),
    (NegativeZero, ("05 ignored",), "edge/05 ignored label per row", "is -0.0, should be 0.0"),
    (ForgetsSmoothing, ("17 smoothed",), "edge/17 smoothed, axis 1", "loss["),
    (SmallNumbers, ("subnormal p",), "edge/subnormal p, class 1", "should be inf"),
    (Unrounded, ("09 keras",), "edge/09 keras, float32", "should be 15.94238"),
    (
        Divides,
        ("12 after_clip", "12 before_clip"),
        "edge/12 after_clip, index",
        "loss[0] is 0.693147",
    ),
    (
        ScaledDivisor,
        ("02 label", "35 element", "rules/rows"),
        "edge/02 label weights, int64",
        "loss is",
    ),
    (SumsRows, ("averaged", "rules/elements"), "edge/24 averaged rows", "loss[0, 0] is"),
    (ClampDerivative, ("10 torch",), "edge/10 torch", "should be 999999995904.0"),
    (OneDivisor, ("02 label weights",), "edge/02 label weights, float32", "loss is"),
    (WeighsEntries, ("18 weighted",), "edge/18 weighted positions, logits", "loss is"),
    (
        CountsElements,
        ("22 averaged",),
        "edge/22 averaged, element weights",
        "loss is 169.5, should be 339.0",
    ),
    (KeepsDtype, ("39 float",), "edge/39 float64 in float32", "loss has dtype float64"),
    (
        ReadsEverything,
        ("log-probabilities, class",),
        "edge/log-probabilities, class weight 0, index",
        "loss[",
    ),
    (Flushes, ("softmax/gaps",), "softmax/gaps, float32", "softmax[0, 1] is 0.0, should be 1.18"),
    (NoShiftSoftmax, ("softmax/offset",), "softmax/offset, float32", "softmax[0, 0] is nan"),
    (
        LastAxis,
        ("softmax/axis", "softmax/class axis"),
        "softmax/axis 0 of 3",
        "softmax[0, 0, 0] is",
    ),
    (TinySoftmax, ("softmax/gaps",), "softmax/gaps, float32", "should be 0.0"),
    (FlatSoftmax, ("softmax/rows",), "softmax/rows, float32", "gradient to the logits[0, 0] is"),
]


@pytest.mark.parametrize(
    ("wrong", "words", "catcher", "what"), CAUGHT, ids=[caught[0].__name__ for caught in CAUGHT]
)
def test_wrong_adapter_is_caught(
    wrong: type[Adapter], words: tuple[str, ...], catcher: str, what: str
) -> None:
    """The named case fails with the expected failure, and the right adapter passes all of them."""
    assert what in failures(wrong(), *words)[catcher]
    assert not failures(Long(), *words)
    assert not failures(TORCH, *words)


@pytest.mark.framework("torch", "jax")
def test_digits_that_a_compiler_keeps_are_caught() -> None:
    """Without `Adapter.stored`, XLA contracts a product into the loss, and a fused case fails."""
    pytest.importorskip("jax")
    jax = registry.adapter("jax")

    class Contracted(type(jax)):  # type: ignore[misc]
        def stored(self, *tensors: Any) -> Any:
            return tensors

    caught = {
        "fused/cross-entropy, large, product with 1/3": "loss without its gradient",
        "fused/squared error, product with 1000": "should be 0.0",
    }
    chosen = [(case, case.expected()) for case in every()[0] if case.name in caught]
    assert len(chosen) == len(caught)
    for case, expected in chosen:
        right, wrong = (
            checks.check_case(adapter, jax.modes()["jit"], case, expected).failures
            for adapter in (jax, Contracted())
        )
        assert not right
        assert caught[case.name] in "; ".join(wrong)


class Negative(Long):
    """Gives the losses of confident rows as the negative number nearest to 0."""

    def compute(self, plan: Any, *tensors: Any, checked: bool) -> Any:
        """Replace the losses that are below an epsilon."""
        losses = super().compute(plan, *tensors, checked=checked)
        return torch.where(losses < 2.0**-23, torch.full_like(losses, -1e-45), losses)


def test_negative_loss_of_a_hard_label_is_caught() -> None:
    """It fails even where it is within the bound."""
    case = "fused/cross-entropy, product with 1/3"
    assert "of hard labels is" in failures(Negative(), case)[case]
    assert not failures(Long(), case)


def test_comparing_nothing_fails() -> None:
    """A run without a comparison does not count as a success."""
    assert not conformance.Report(unifiedloss="0").ok
    assert not conformance.Row("torch", "0", "eager").ok


def test_small_error_is_caught_in_every_loss() -> None:
    """A result that is off by one part in 10000 fails in every loss."""

    class Off(Long):
        def compute(self, plan: Any, *tensors: Any, checked: bool) -> Any:
            return super().compute(plan, *tensors, checked=checked) * (1 + 1e-4)

    names = [
        case.name
        for case in all_cases()
        if case.name.startswith("random/") and case.dtype == "float32"
    ]
    assert len(names) > 10
    assert failures(Off(), *names).keys() == set(names)
    assert np.isfinite(_EXPECTED[names[0]].position_losses).all()

"""Bad calls, each with the class and the full message of the error that it raises.

Some calls are valid: they give a field in another form, or read or write a loss of another library.
For these the file keeps the result.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

import unifiedloss as ul
from unifiedloss import conformance
from unifiedloss.adapter import Adapter
from unifiedloss.conformance.case import BadCall
from unifiedloss.conformance.cases import bad_calls
from unifiedloss.conformance.softmax import bad_softmax_calls

from .specs import FIELDS, lines
from .texts import EXPLAINED

Outcome = list[str]
"""The class and message of the error, or "" and the repr of the result of a valid call."""

_LOGITS = ((2, 1, 0), (0, 1, 2), (1, 3, -1), (0.5, 0.5, 0.5))


def _f32(x: Any) -> Any:
    return np.array(x, np.float32)


def _plain_function(predictions: Any, targets: Any) -> Any:
    return predictions, targets


class _Stranger:
    """A class of no library."""


NAMES: dict[str, Any] = {
    "ul": ul,
    "np": np,
    "f32": _f32,
    "z": _f32(_LOGITS),
    "p": _f32([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.5, 0.25], [0.2, 0.3, 0.5]]),
    "y": np.array([0, 1, 1, 2]),
    "t": _f32(np.eye(3)[[0, 1, 1, 2]]),
    "cube": _f32(np.zeros((2, 3, 3))),
    "nan": float("nan"),
    "inf": float("inf"),
    "partial": functools.partial,
    "function": _plain_function,
    "Stranger": _Stranger,
    "Adapter": Adapter,
    "conformance": conformance,
}
"""The names that the calls use.

For 4 rows and 3 classes: logits `z`, probabilities `p`, class indices `y`, and `t`, their one-hot
targets.
"""


# ------------------------------------------------------------------------------------------ fields

_BAD_FOR_ALL = ("None", "True", "1", "-1", "1.5", "'x'", "b'x'", "[1, -1]", "{0: 1.0}")

_NUMBERS = ("'0.1'", "nan", "inf", "10**400", "1j", "[0.5]", "np.float64(0.25)", "np.array(2)")
_BAD: dict[str, tuple[str, ...]] = {
    "from_logits": ("0", "np.bool_(True)"),
    "epsilon": (*_NUMBERS, "0.5", "-1e-7", "'torch'", "'keras '", "-0.0"),
    "epsilon_added": ("0",),
    "label_smoothing": (*_NUMBERS, "1.0000001", "-0.1"),
    "scale": (*_NUMBERS, "0", "-0.0", "-2.5"),
    "axis": ("1.0", "'1'", "[0]", "nan", "np.int64(1)", "np.array(1)", "np.float64(1)", "2**70"),
    "class_weights": (
        "[]", "[1, True]", "[1, 'a']", "[1, nan]", "[1, inf]", "[10**400]", "[[1], [2]]", "'12'",
        "2.0", "(x for x in [1, 2])", "np.array([1, 2], np.float32)", "np.array([[1, 2]])",
        "np.array(1.0)", "{1, -2}",
    ),
    "ignore_index": (
        "1.0", "[1, True]", "[1, 2.5]", "2**63", "-2**63 - 1", "-2**63", "['a']", "[[1], [2]]",
        "np.array([3, 1, 3])", "np.array(2.0)", "()",
    ),
    "pos_weight": (
        *_NUMBERS, "[]", "[1, -2]", "[[1], [2]]", "[1, 'a']", "-0.5", "np.array([1, 2])",
    ),
    "element_weights": (
        *_NUMBERS, "[]", "[[]]", "[[1], [2, 3]]", "[[1], 2]", "[[1], [-2]]", "[[1], ['a']]",
        "[[1], [True]]", "-1.0", "np.array([[1, 2]])", "(1, (2, 3))",
    ),
    "renormalize": ("'before'", "False"),
    "class_weighting": ("'row'", "0"),
    "dtype": ("'float16'", "'double'", "np.float32", "np.dtype('float32')"),
    "reduction": ("'avg'", "'MEAN'"),
    "divisor": ("'count'", "'label_weights'"),
    "on_empty": ("'raise'",),
    "rounding": ("'correct'",),
}  # fmt: skip
"""Values of each field that are wrong, or that the field converts to its canonical form."""

_ABSENT = (
    "weight", "weights", "ignore_class", "dim", "class_axis", "size_average", "reduce", "smoothing",
    "eps", "from_logit", "labelsmoothing", "reductions", "sample_weight", "mask", "temperature",
    "self", "name", "spec", "epsilon_", "logits",
)  # fmt: skip
"""Names of no field; the messages of some of them suggest another name or an argument."""


def _of_fields() -> Iterator[str]:
    for cls, fields in FIELDS.items():
        for name in fields:
            for value in (*_BAD_FOR_ALL, *_BAD.get(name, ())):
                yield f"ul.{cls}({name}={value})"


def _of_unknown_fields() -> Iterator[str]:
    known = {name for fields in FIELDS.values() for name in fields}
    for cls, fields in FIELDS.items():
        for name in (*_ABSENT, *sorted(known - set(fields))):
            yield f"ul.{cls}({name}=1)"
    for name in _ABSENT[:6]:
        yield f"ul.CrossEntropyLoss().replace({name}=1)"
    yield "ul.MeanSquaredError().replace(scale=-1)"


_COMBINATIONS = (
    "ul.CrossEntropyLoss(from_logits=True, epsilon=1e-7)",
    "ul.CrossEntropyLoss(from_logits=True, epsilon='keras')",
    "ul.CrossEntropyLoss(from_logits=True, epsilon=0.0)",
    "ul.BinaryCrossEntropyLoss(from_logits=True, epsilon=0.25)",
    "ul.BinaryCrossEntropyLoss(from_logits=True, epsilon='torch')",
    "ul.CrossEntropyLoss(renormalize='before_clip')",
    "ul.CrossEntropyLoss(renormalize='after_clip', epsilon=0)",
    "ul.CrossEntropyLoss(from_logits=True, renormalize='before_clip')",
    "ul.CrossEntropyLoss(from_logits=True, renormalize='before_clip', epsilon='keras')",
    "ul.BinaryCrossEntropyLoss(epsilon_added=True)",
    "ul.BinaryCrossEntropyLoss(epsilon_added=True, epsilon='keras')",
    "ul.BinaryCrossEntropyLoss(epsilon_added=True, epsilon='torch')",
    "ul.BinaryCrossEntropyLoss(epsilon_added=True, epsilon=1e-7, from_logits=True)",
    "ul.BinaryCrossEntropyLoss(epsilon='torch', pos_weight=2)",
    "ul.BinaryCrossEntropyLoss(epsilon='torch', pos_weight=[1, 2])",
    "ul.MeanSquaredError(dtype='float32', rounding='correct')",
    "ul.MeanSquaredError(dtype='float16', rounding='exact')",
    "ul.CrossEntropyLoss(from_logits=1, axis='a', reduction='b')",
    "ul.BinaryCrossEntropyLoss(pos_weight='a', from_logits=2)",
    "ul.CrossEntropyLoss(epsilon=2, from_logits=True)",
)

_SERIALIZED = (
    "ul.from_dict([1])",
    "ul.from_dict(None)",
    "ul.from_dict({})",
    "ul.from_dict({'loss': 'mean_squared_error'})",
    "ul.from_dict({'version': 1})",
    "ul.from_dict({'loss': 'hinge', 'version': 1})",
    "ul.from_dict({'loss': 'mse', 'version': 1})",
    "ul.from_dict({'loss': 'ce', 'version': 1})",
    "ul.from_dict({'loss': 'bce', 'version': 1})",
    "ul.from_dict({'loss': 'nll', 'version': 1})",
    "ul.from_dict({'loss': 'l2', 'version': 1})",
    "ul.from_dict({'loss': 'crossentropy', 'version': 1})",
    "ul.from_dict({'loss': 'CrossEntropyLoss', 'version': 1})",
    "ul.from_dict({'loss': ['mean_squared_error'], 'version': 1})",
    "ul.from_dict({'loss': None, 'version': 1})",
    "ul.from_dict({'loss': 'mean_squared_error', 'version': True})",
    "ul.from_dict({'loss': 'mean_squared_error', 'version': '1'})",
    "ul.from_dict({'loss': 'mean_squared_error', 'version': 0})",
    "ul.from_dict({'loss': 'mean_squared_error', 'version': 1.0})",
    "ul.from_dict({'loss': 'mean_squared_error', 'version': 99})",
    "ul.from_dict({'loss': 'mean_squared_error', 'version': 1, 'axis': 1})",
    "ul.from_dict({'loss': 'cross_entropy', 'version': 1, 'weight': 1})",
    "ul.from_dict({'loss': 'cross_entropy', 'version': 1, 'mask': 1})",
    "ul.from_dict({'loss': 'cross_entropy', 'version': 1, 'label_smoothing': 'a'})",
    "ul.from_dict({'loss': 'cross_entropy', 'version': 1, 'label_smoothing': 2})",
    "ul.from_dict({'loss': 'cross_entropy', 'version': 1, 'scale': 2.0})",
    (
        "ul.from_dict({'loss': 'cross_entropy', 'version': 2, 'class_weights': [1, 2], "
        "'ignore_index': [3, 1]})"
    ),
    'ul.from_json(b\'{"loss": "mean_squared_error", "version": 1}\')',
    "ul.from_json('{')",
    "ul.from_json('')",
    "ul.from_json(b'\\xff')",
    "ul.from_json('[1]')",
    "ul.from_json('1')",
    "ul.from_json({'loss': 'mean_squared_error'})",
    "ul.from_json(None)",
    'ul.from_json(\'{"loss": "mean_squared_error", "version": 1, "version": 1}\')',
    'ul.from_json(\'{"loss": "mean_squared_error", "version": 1, "scale": NaN}\')',
    'ul.from_json(\'{"loss": "cross_entropy", "version": 1, "axis": 1.0}\')',
)

# ------------------------------------------------------------------------------- shapes and dtypes

_CE, _CE_P = "ul.CrossEntropyLoss(from_logits=True)", "ul.CrossEntropyLoss()"
_BCE, _BCE_P = "ul.BinaryCrossEntropyLoss(from_logits=True)", "ul.BinaryCrossEntropyLoss()"
_MSE, _NLL = "ul.MeanSquaredError()", "ul.NegativeLogLikelihoodLoss()"

_SHAPES = (
    f"{_CE}(f32(1), np.array(0))",
    f"{_NLL}(f32(1), np.array(0))",
    "ul.CrossEntropyLoss(axis=2)(z, y)",
    "ul.CrossEntropyLoss(axis=-3)(z, y)",
    "ul.NegativeLogLikelihoodLoss(axis=2)(z, y)",
    f"{_CE}(cube, np.zeros((2, 3), int))",
    f"{_CE}(np.zeros((2, 3, 4, 5)), np.zeros((2, 3, 4), int))",
    f"{_CE}(z[:, :0], y)",
    "ul.CrossEntropyLoss(axis=0)(z[:0], y[:3])",
    "ul.CrossEntropyLoss(class_weights=[1, 2])(z, y)",
    "ul.CrossEntropyLoss(class_weights=[1, 2, 3], axis=0)(z, y[:3])",
    "ul.NegativeLogLikelihoodLoss(class_weights=[1, 2, 3, 4])(z, y)",
    f"{_CE}(z, y[:3])",
    f"{_CE}(z, y[:, None])",
    f"{_CE}(z, y[None])",
    f"{_CE}(z, t.astype(int))",
    f"{_CE}(z, 0)",
    f"{_NLL}(z, y[:3])",
    "ul.CrossEntropyLoss(axis=1)(cube, np.zeros((2, 1, 3), int))",
    "ul.CrossEntropyLoss(axis=1)(cube, np.zeros((2, 3, 3), int))",
    "ul.CrossEntropyLoss(axis=1)(cube, np.zeros((3, 2), int))",
    f"{_CE}(z, t[:, :2])",
    f"{_CE}(z, t[0])",
    f"{_NLL}(z, t[:2])",
    "ul.CrossEntropyLoss(from_logits=True, ignore_index=1)(z, t)",
    "ul.CrossEntropyLoss(from_logits=True, ignore_index=[-1, 0, 2])(z, t)",
    "ul.NegativeLogLikelihoodLoss(ignore_index=2)(z, t)",
    f"{_MSE}(f32([[1], [2], [3]]), f32([1, 2, 3]))",
    f"{_MSE}(f32([1, 2, 3]), f32([1, 2]))",
    f"{_MSE}(z, t[:1])",
    f"{_MSE}(z, 1.0)",
    f"{_BCE}(f32([[1], [2]]), f32([1, 0]))",
    f"{_BCE}(z, t[:, :2])",
    "ul.BinaryCrossEntropyLoss(pos_weight=[1, 2])(f32(0.5), 1)",
    "ul.BinaryCrossEntropyLoss(pos_weight=[1, 2])(p, t)",
    "ul.BinaryCrossEntropyLoss(pos_weight=[1, 2], axis=0)(p, t)",
    "ul.BinaryCrossEntropyLoss(pos_weight=[1, 2, 3], axis=2)(p, t)",
    "ul.BinaryCrossEntropyLoss(pos_weight=[1, 2, 3], axis=-3)(p, t)",
    "ul.BinaryCrossEntropyLoss(element_weights=[1, 2])(p, t)",
    "ul.MeanSquaredError(element_weights=[1, 2])(z, t)",
    "ul.MeanSquaredError(element_weights=[[[1, 2, 3]]])(z, t)",
    "ul.MeanSquaredError(element_weights=[[1], [2]])(z, t)",
    "ul.MeanSquaredError(average_last_axis=True)(z[0], t[0])",
    "ul.MeanSquaredError(average_last_axis=True)(f32(1), f32(1))",
    "ul.MeanSquaredError(average_last_axis=True)(z[:, :0], t[:, :0])",
    "ul.BinaryCrossEntropyLoss(average_last_axis=True)(p[0], t[0])",
    "ul.MeanSquaredError(average_last_axis=True)(z, t, sample_weight=np.ones((4, 3)))",
    f"{_CE}(z, y, sample_weight=np.ones(3))",
    f"{_CE}(z, y, sample_weight=np.ones((4, 1)))",
    f"{_CE}(z, y, mask=np.ones(3, bool))",
    f"{_CE}(z, y, mask=np.ones((4, 3), bool))",
    f"{_MSE}(z, t, sample_weight=np.ones(3))",
    f"{_MSE}(z, t, mask=np.ones((4, 3, 1), bool))",
    f"{_CE}.value_and_grad(z, y, upstream=np.ones(4))",
    f"{_CE}.value_and_grad(z, y, upstream=[1.0])",
    "ul.MeanSquaredError(reduction='none').value_and_grad(z, t, upstream=1.0)",
    "ul.MeanSquaredError(reduction='none').value_and_grad(z, t, upstream=np.ones(4))",
    (
        "ul.MeanSquaredError(reduction='none', rounding='exact')"
        ".value_and_grad(z, t, upstream=np.ones(4))"
    ),
    f"{_CE}.value_and_grad(z, y[:3])",
    f"ul.check({_CE}, z, y[:3])",
    "ul.cross_entropy_loss(z, y[:3])",
    "ul.binary_cross_entropy_loss(p, t[0])",
    "ul.mean_squared_error(z, t[0])",
    "ul.negative_log_likelihood_loss(z, y[:3])",
    f"{_CE}.to('numpy')(z, y[:3])",
    "ul.softmax(cube)",
    "ul.softmax(cube, axis=3)",
    "ul.softmax(z, axis=-3)",
    "ul.softmax(z, axis=1.0)",
    "ul.softmax(z, axis=True)",
    "ul.softmax(1.0)",
    "ul.softmax(z[:, :0])",
)

_DTYPES = (
    f"{_CE}(z.astype(int), y)",
    f"{_CE}(z > 0, y)",
    f"{_CE}(z.astype(complex), y)",
    f"{_CE}(y, z)",
    f"{_BCE}(y, y)",
    f"{_MSE}(y, y)",
    f"{_NLL}(z.astype(np.int8), y)",
    f"{_CE}(z, y > 0)",
    f"{_CE}(z, y.astype(complex))",
    f"{_CE}(z, np.array(['a'] * 4))",
    f"{_CE}(z, np.array([None] * 4))",
    f"{_NLL}(z, y > 0)",
    f"{_NLL}(z, y.astype('M8[s]'))",
    f"{_BCE}(z, t.astype(complex))",
    f"{_MSE}(z, t.astype(complex))",
    f"{_MSE}(z, np.full((4, 3), 'a'))",
    f"{_MSE}(np.array(['a', 'b']), f32([1, 2]))",
    f"{_CE}(z, y, mask=np.ones(4))",
    f"{_CE}(z, y, mask=[1, 0, 1, 1])",
    f"{_MSE}(z, t, mask=np.ones(4, np.uint8))",
    f"{_CE}(z, y, sample_weight=np.ones(4, bool))",
    f"{_CE}(z, y, sample_weight=np.ones(4, complex))",
    f"{_MSE}(z, t, sample_weight=np.array(['a'] * 4))",
    f"{_CE}.value_and_grad(z, y, upstream=True)",
    f"{_CE}.value_and_grad(z, y, upstream=1j)",
    "ul.CrossEntropyLoss(dtype='float32')(z.astype(int), y)",
    "ul.CrossEntropyLoss(dtype='float32')(z, y > 0)",
    "ul.softmax(z.astype(int))",
    "ul.softmax(z > 0)",
)

_EXACT = ", rounding='exact'"
_VALUES = (
    f"{_CE}(z, np.array([0, -1, 1, 2]))",
    f"{_CE}(z, np.array([0, 1, 3, 2]))",
    f"{_CE}(z, np.array([-100, 1, 0, 2], np.int16))",
    f"{_CE}(z, np.array([0, 1, 200, 2], np.uint8))",
    f"{_CE}(z, np.array([0, 1, 2**63, 2], np.uint64))",
    "ul.CrossEntropyLoss(from_logits=True, ignore_index=3)(z, np.array([0, 3, 4, 2]))",
    "ul.CrossEntropyLoss(from_logits=True, axis=1)(cube, np.array([[0, 1, 2], [0, 5, 2]]))",
    f"{_CE}(z[0], 3)",
    f"{_NLL}(z, np.array([0, 1, 3, 2]))",
    f"{_CE}(z, t - f32(0.5))",
    f"{_CE}(z, t * f32(inf))",
    f"{_CE}(z, np.where(t > 0, -inf, 0.5))",
    f"{_NLL}(z, t - f32(0.5))",
    f"{_CE_P}(z, y)",
    f"{_CE_P}(z, t)",
    f"{_CE_P}(-p, t)",
    f"{_CE_P}(p + f32(1), y)",
    f"{_CE_P}(p.astype(np.float16) * 2, y)",
    "ul.CrossEntropyLoss(label_smoothing=0.1)(z, y)",
    "ul.CrossEntropyLoss(epsilon='keras')(z, y)",
    "ul.CrossEntropyLoss(epsilon='keras', renormalize='before_clip')(z, y)",
    "ul.CrossEntropyLoss(epsilon=0.1, renormalize='after_clip')(z - 1, t)",
    "ul.CrossEntropyLoss(epsilon=0.1, renormalize='after_clip')(p / f32(0), t)",
    f"{_BCE_P}(z, t)",
    f"{_BCE_P}(f32(2), 1)",
    f"{_BCE_P}(-p, t > 0)",
    f"{_BCE}(z, t * 2)",
    f"{_BCE}(z, t - f32(0.5))",
    f"{_BCE}(z, t.astype(int) * 2)",
    f"{_BCE}(z, np.full((4, 3), 255, np.uint8))",
    f"{_MSE}(z, np.full((4, 3), 2**53 + 1))",
    f"{_MSE}(z, np.full((4, 3), -(2**60)))",
    f"{_MSE}(z, np.full((4, 3), 2**64 - 1, np.uint64))",
    f"{_CE}(z, y, sample_weight=f32([1, -1, 1, 1]))",
    f"{_CE}(z, y, sample_weight=-1.0)",
    f"{_CE}(z, y, sample_weight=[1, 1, -3, 1])",
    f"{_MSE}(z, t, sample_weight=f32([1, 1, 1, -0.25]))",
    "ul.CrossEntropyLoss(from_logits=True, on_empty='error')(z, y, sample_weight=np.zeros(4))",
    "ul.CrossEntropyLoss(from_logits=True, on_empty='error')(z, y, mask=np.zeros(4, bool))",
    (
        "ul.CrossEntropyLoss(from_logits=True, on_empty='error', ignore_index=[0, 1, 2], "
        "divisor='present')(z, y)"
    ),
    "ul.CrossEntropyLoss(from_logits=True, on_empty='error', class_weights=[0, 0, 0])(z, y)",
    (
        "ul.CrossEntropyLoss(from_logits=True, on_empty='error', class_weights=[0, 0, 0], "
        "divisor='nonzero')(z, t)"
    ),
    (
        "ul.CrossEntropyLoss(from_logits=True, on_empty='error', divisor='label_weights')"
        "(z[:0], t[:0])"
    ),
    "ul.BinaryCrossEntropyLoss(on_empty='error', element_weights=[0, 0, 0])(p, t)",
    "ul.MeanSquaredError(on_empty='error', divisor='all')(z[:0], t[:0])",
    "ul.MeanSquaredError(on_empty='error', average_last_axis=True)(z, t, mask=np.zeros(4, bool))",
    f"{_CE}.value_and_grad(z, np.array([0, -1, 1, 2]))",
    f"ul.check({_CE}, z, np.array([0, -1, 1, 2]))",
    f"ul.check({_CE_P}, z, y)",
    f"ul.check({_CE}, z, y)",
    "ul.CrossEntropyLoss(from_logits=True, rounding='exact')(z, np.array([0, -1, 1, 2]))",
    "ul.CrossEntropyLoss(rounding='exact')(z, y)",
    "ul.BinaryCrossEntropyLoss(rounding='exact').value_and_grad(z, t)",
)

_REGISTRY = (
    "ul.MeanSquaredError().to('mxnet')",
    "ul.MeanSquaredError().to('pytorch')",
    "ul.MeanSquaredError().to('Torch')",
    "ul.MeanSquaredError().to('tf')",
    "ul.MeanSquaredError().to('np')",
    "ul.cross_entropy_loss('abc', [0])",
    "ul.cross_entropy_loss(None, [0])",
    "ul.cross_entropy_loss([[1.0, 2.0]], None)",
    "ul.cross_entropy_loss([[1.0, 2.0]], {1})",
    "ul.cross_entropy_loss(Stranger(), [0])",
    "ul.cross_entropy_loss(z, y, sample_weight='a')",
    "ul.cross_entropy_loss(z, y, mask=Stranger())",
    "ul.mean_squared_error(z, [[1.0, Stranger()]])",
    "ul.mean_squared_error(z, [1.0, None])",
    "ul.mean_squared_error([1.0, {1: 2}], [1.0, 2.0])",
    "ul.mean_squared_error([1.0, 2.0], [[1, 2], [3]])",
    "ul.mean_squared_error(10**400, 1.0)",
    "ul.mean_squared_error(np.ma.masked_array(z, z > 1), t)",
    "ul.mean_squared_error(z, np.ma.masked_array(t, z > 1))",
    "ul.mean_squared_error(z, t, sample_weight=np.ma.masked_array(np.ones(4), y > 1))",
    "ul.mean_squared_error(np.random.default_rng(), [1.0])",
    "ul.MeanSquaredError().to('numpy')(z, Stranger())",
    "ul.softmax(np.ma.masked_array(z, z > 1))",
    "ul.softmax('abc')",
    "ul.softmax([[1.0, Stranger()]])",
    "ul.check(ul.MeanSquaredError(), Stranger(), t)",
    "ul.check(3, z, y)",
    "ul.check(ul.CrossEntropyLoss, z, y)",
    "ul.check('torch.nn.MSELoss()', z, t)",
    "conformance.run(rounding='correct')",
    "conformance.run(['mxnet'])",
    "conformance.run(['numpyy'])",
    "conformance.run(['numpy'], losses=['mse'])",
    "conformance.run(['numpy'], losses=['hinge'])",
)

_TORCH = (
    "ul.mean_squared_error(torch.ones(2), jnp.zeros(2))",
    "ul.mean_squared_error(jnp.ones(2), torch.zeros(2))",
    "ul.mean_squared_error(torch.ones(2), f32([0, 0]), sample_weight=jnp.ones(2))",
    "ul.mean_squared_error(f32([0, 0]), torch.ones(2), mask=jnp.ones(2, bool))",
    "ul.MeanSquaredError().to('torch')(torch.ones(2), jnp.ones(2))",
    "ul.MeanSquaredError().to('torch')(torch.ones(2), torch.ones(2), mask=jnp.ones(2, bool))",
    "ul.MeanSquaredError().to('torch')(torch.ones(2), {1})",
    "ul.MeanSquaredError().to('torch')(torch.ones(2), None)",
    "ul.MeanSquaredError().to('torch')(torch.ones(2), torch.nn.Identity())",
    "ul.MeanSquaredError().to('jax')(jnp.ones(2), torch.ones(2))",
    "ul.MeanSquaredError().to('numpy')(f32([1, 2]), torch.ones(2))",
    "ul.mean_squared_error(torch.ones(2, 3), [torch.ones(3), torch.ones(3)])",
    "ul.mean_squared_error(f32([[1, 1, 1]] * 2), [[torch.ones(3)], [torch.ones(3)]])",
    "ul.mean_squared_error([torch.ones(3), torch.ones(3)], [[1, 1, 1]] * 2)",
    (
        "ul.mean_squared_error(torch.ones(2, 3), torch.ones(2, 3), "
        "sample_weight=[torch.ones(()), torch.ones(())])"
    ),
    "ul.mean_squared_error(jnp.ones((2, 3)), [jnp.ones(3), jnp.ones(3)])",
    "ul.softmax([torch.ones(3), torch.ones(3)])",
    "ul.cross_entropy_loss(torch.ones(2, 3), torch.ones(3, dtype=torch.int64))",
    "ul.cross_entropy_loss(torch.ones(2, 3, dtype=torch.int32), torch.ones(2, dtype=torch.int64))",
    (
        "ul.cross_entropy_loss(torch.ones(2, 3, dtype=torch.complex64), "
        "torch.ones(2, dtype=torch.int64))"
    ),
    "ul.cross_entropy_loss(torch.ones(2, 3), torch.tensor([0, 3]), from_logits=True)",
    "ul.cross_entropy_loss(torch.full((2, 3), 2.0, dtype=torch.bfloat16), torch.tensor([0, 1]))",
    "ul.cross_entropy_loss(jnp.ones((2, 3)), jnp.array([0, 3]), from_logits=True)",
    "ul.MeanSquaredError().value_and_grad(torch.ones(2), torch.ones(2), upstream=torch.ones(2))",
    "ul.CrossEntropyLoss(label_smoothing=torch.tensor(2.0))",
    "ul.CrossEntropyLoss(label_smoothing=torch.tensor([0.5]))",
    "ul.CrossEntropyLoss(axis=torch.tensor(1.0))",
    "ul.CrossEntropyLoss(class_weights=torch.tensor([1.0, -2.0]))",
    "ul.CrossEntropyLoss(class_weights=jnp.array([[1.0, 2.0]]))",
    "ul.MeanSquaredError(element_weights=torch.tensor([[1.0, -2.0]]))",
    "ul.from_native(torch.nn.CrossEntropyLoss)",
    "ul.from_native(torch.nn.L1Loss())",
    "ul.from_native(torch.nn.functional.l1_loss)",
    "ul.from_native(torch.nn.functional.cross_entropy, input=1)",
    "ul.from_native(torch.nn.functional.cross_entropy, smoothing=0.1)",
    (
        "ul.from_native(torch.nn.BCEWithLogitsLoss("
        "pos_weight=torch.ones(2, 3) * torch.arange(6.0).reshape(2, 3)))"
    ),
    (
        "ul.from_native(torch.nn.CrossEntropyLoss(label_smoothing=0.1, "
        "weight=torch.tensor([1.0, 2.0])))"
    ),
    "ul.from_native(ul.MeanSquaredError().to('torch'))",
    "ul.CrossEntropyLoss().to_native('torch')",
    "ul.from_native(ul.BinaryCrossEntropyLoss(epsilon='torch', divisor='all').to_native('torch'))",
)

# ----------------------------------------------------------------------------------------- interop

_LIBRARIES = ("torch", "keras", "tensorflow", "optax", "sklearn", "onnx")

_READ = (
    "torch.nn.CrossEntropyLoss()",
    "torch.nn.functional.cross_entropy",
    "torch.nn.NLLLoss(weight=[1, 2])",
    "torch.nn.functional.nll_loss",
    "torch.nn.BCELoss()",
    "torch.nn.functional.binary_cross_entropy",
    "torch.nn.BCEWithLogitsLoss(pos_weight=[1, 2])",
    "nn.BCEWithLogitsLoss(pos_weight=[[[1]], [[2]]], weight=[1, 0.5])",
    "torch.nn.functional.binary_cross_entropy_with_logits",
    "torch.nn.MSELoss(reduction='sum')",
    "functools.partial(F.mse_loss, weight=[1, 2])",
    "nn.MSELoss(size_average=False)",
    "nn.MSELoss(reduce=False)",
    *(
        f"keras{on}.losses.{name}{arguments}"
        for on in ("", "[torch]", "[jax]", "[numpy]")
        for name, arguments in (
            ("SparseCategoricalCrossentropy", "(ignore_class=3)"),
            ("SparseCategoricalCrossentropy", "(axis=1)"),
            ("CategoricalCrossentropy", "(label_smoothing=0.1)"),
            ("CategoricalCrossentropy", "(axis=1)"),
            ("CategoricalCrossentropy", "(axis=1, label_smoothing=0.1)"),
            ("BinaryCrossentropy", "()"),
            ("BinaryCrossentropy", "(from_logits=True)"),
            ("BinaryCrossentropy", "(dtype='float64')"),
            ("MeanSquaredError", "()"),
            ("sparse_categorical_crossentropy", ""),
            ("categorical_crossentropy", ""),
            ("binary_crossentropy", ""),
            ("mean_squared_error", ""),
        )
    ),
    "keras.losses.MeanSquaredError(reduction='mean_with_sample_weight')",
    "keras.losses.MeanSquaredError(reduction='avg')",
    "keras.losses.MeanSquaredError(reduction=None)",
    "keras.losses.MeanSquaredError(dtype='bfloat16')",
    "keras.losses.MeanSquaredError(dtype='mixed_float16')",
    "keras.losses.MeanSquaredError(dtype='int32')",
    "keras.losses.BinaryCrossentropy(axis=1)",
    "keras.losses.CategoricalCrossentropy(axis=[1])",
    "keras[mxnet].losses.MeanSquaredError()",
    "keras[numppy].losses.MeanSquaredError()",
    "keras[1].losses.MeanSquaredError()",
    "optax.losses.softmax_cross_entropy_with_integer_labels",
    "functools.partial(optax.softmax_cross_entropy, axis=1)",
    "functools.partial(optax.softmax_cross_entropy, axis=(0, 1))",
    "functools.partial(optax.softmax_cross_entropy, where=[True])",
    "optax.losses.safe_softmax_cross_entropy",
    "optax.losses.sigmoid_binary_cross_entropy",
    "optax.losses.squared_error",
    "optax.losses.l2_loss",
    "sklearn.metrics.log_loss",
    "functools.partial(sklearn.metrics.log_loss, normalize=False)",
    "functools.partial(sklearn.metrics.log_loss, normalize=1)",
    "functools.partial(sklearn.metrics.log_loss, labels=[0, 1])",
    "sklearn.metrics.mean_squared_error",
    "functools.partial(sklearn.metrics.mean_squared_error, multioutput='raw_values')",
    "tf.nn.sparse_softmax_cross_entropy_with_logits",
    "functools.partial(tf.nn.softmax_cross_entropy_with_logits, axis=1)",
    "tf.nn.sigmoid_cross_entropy_with_logits",
    "tf.nn.weighted_cross_entropy_with_logits",
    "functools.partial(tf.nn.weighted_cross_entropy_with_logits, pos_weight=2.0)",
    "functools.partial(tf.nn.weighted_cross_entropy_with_logits, pos_weight=[[1, 2], [3, 4]])",
    "functools.partial(tf.nn.weighted_cross_entropy_with_logits, pos_weight=[[1], [2, 3]])",
    "tf.compat.v1.losses.sparse_softmax_cross_entropy",
    "functools.partial(tf.compat.v1.losses.softmax_cross_entropy, label_smoothing=0.1)",
    "tf.compat.v1.losses.sigmoid_cross_entropy",
    "tf.compat.v1.losses.log_loss",
    "functools.partial(tf.compat.v1.losses.mean_squared_error, weights=2.0)",
    "functools.partial(tf.compat.v1.losses.mean_squared_error, weights=0)",
    "functools.partial(tf.compat.v1.losses.mean_squared_error, weights=[1, 2])",
    "functools.partial(tf.compat.v1.losses.mean_squared_error, reduction='avg')",
    "functools.partial(tf.compat.v1.losses.mean_squared_error, reduction='weighted_mean')",
    "onnx.SoftmaxCrossEntropyLoss(weights=[1, 2])",
    'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["s", "l"], ["y"], ignore_index=1)',
    'onnx.helper.make_node("NegativeLogLikelihoodLoss", ["s", "l"], ["y"], reduction="sum")',
    'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["s", "l", "w"], ["y"])',
    'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["s", "l"], ["y", "log_prob"])',
    'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["s", "s"], ["y"])',
    'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["s"], ["y"])',
    'onnx.helper.make_node("SoftmaxCrossEntropyLoss", "scores", ["y"])',
    'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["s", "l"], ["y"], outputs=["z"])',
    'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["s", "l"], ["y"], alpha=1)',
    'onnx.helper.make_node("Relu", ["x"], ["y"])',
    "onnx.helper.make_node()",
    "[1]",
    "torch.nn.L1Loss()",
    "nn.MSELoss",
    "MSELoss()",
    "torch.nn.functional.cros_entropy",
    "functools.partial()",
    "functools.partial(nn.MSELoss)",
    "nn.MSELoss(x, y)",
    "nn.MSELoss(1, 2, 3, 4)",
    "nn.MSELoss(1, size_average=1)",
    "nn.MSELoss(reduction='sum', reduction='mean')",
    "nn.MSELoss(**x)",
    "nn.MSELoss(weight=[1])",
    "nn.CrossEntropyLoss(smoothing=0.1)",
    "nn.CrossEntropyLoss(label_smoothing=2)",
    "nn.CrossEntropyLoss(reduction='avg')",
    "nn.CrossEntropyLoss(ignore_index=None)",
    "nn.CrossEntropyLoss(label_smoothing=float('0.1'))",
    "nn.BCEWithLogitsLoss(pos_weight=torch.Tensor(3))",
    "nn.BCEWithLogitsLoss(pos_weight=[[1, 2], [3, 4]])",
    "nn.BCEWithLogitsLoss(pos_weight=[])",
    "nn.MSELoss(reduction=torch.tensor('sum'))",
    "F.cross_entropy(1.0, 2.0)",
    "F.cross_entropy(input=1.0)",
    "torch[jax].nn.MSELoss()",
    "tf.keras[jax].losses.MeanSquaredError()",
    "ul.CrossEntropyLoss",
    "ul.CrossEntropyLoss(True)",
    "ul.CrossEntropy()",
    "ul.CrossEntropyLoss(smoothing=0.1)",
    "ul.CrossEntropyLoss(from_logits=True, scale=2.0)",
    "ul.MeanSquaredError(scale=2.0, scale=3.0)",
    "a b",
    "{",
    '{"loss": "mean_squared_error"}',
)

_OBJECTS = (
    "ul.from_native(None)",
    "ul.from_native(3)",
    "ul.from_native([1.0])",
    "ul.from_native(function)",
    "ul.from_native(partial(function, targets=1))",
    "ul.from_native(partial(max, 1))",
    "ul.from_native(Stranger)",
    "ul.from_native(ul.MeanSquaredError(scale=2))",
    "ul.from_native(ul.MeanSquaredError().to('numpy'))",
    "ul.from_native('torch.nn.MSELoss()', reduction='sum')",
    "ul.MeanSquaredError().to_native('jax', code=True)",
    "ul.MeanSquaredError().to_native('numpy')",
    "ul.MeanSquaredError().to_native('pytorch')",
    "ul.MeanSquaredError().to_native('tf')",
    "ul.MeanSquaredError().to_native('torch', rank=2, code=True)",
    "ul.CrossEntropyLoss(from_logits=True, axis=1).to_native('onnx', rank=1)",
    "ul.CrossEntropyLoss(from_logits=True, axis=1).to_native('onnx', rank=2.0)",
    "ul.CrossEntropyLoss(from_logits=True, axis=1).to_native('onnx', rank=2, code=True)",
    (
        "ul.CrossEntropyLoss(from_logits=True, axis=1, ignore_index=[1, 2])"
        ".to_native('torch', code=True)"
    ),
    (
        "ul.CrossEntropyLoss(from_logits=True, axis=1, ignore_index=[1, 2])"
        ".to_native('onnx', code=True)"
    ),
    (
        "ul.CrossEntropyLoss(axis=-1, ignore_index=[1, 2], epsilon='keras')"
        ".to_native('keras', code=True)"
    ),
    (
        "ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=[1, 2], axis=0)"
        ".to_native('torch', code=True)"
    ),
    (
        "ul.BinaryCrossEntropyLoss(from_logits=True, label_smoothing=0.1)"
        ".to_native('tensorflow', code=True)"
    ),
    "ul.diff('torch.nn.MSELoss()', 3)",
    "ul.diff(None, ul.MeanSquaredError())",
    "ul.explain('torch.nn.L1Loss()')",
    "ul.explain(None)",
    "ul.explain('keras.losses.MeanSquaredError(dtype=\"bfloat16\")')",
    "ul.port_report('torch.nn.MSELoss()', 'a', z, t)",
    "ul.port_report('torch.nn.MSELoss()', ul.MeanSquaredError(), [[1.0], [1.0, 2.0]], t)",
)


def _interop() -> Iterator[str]:
    for text in _READ:
        yield f"ul.from_native({text!r})"
    for spec in EXPLAINED:
        for library in _LIBRARIES:
            yield f"ul.{spec}.to_native({library!r}, code=True)"
    yield from _OBJECTS


# ---------------------------------------------------------------------------------------- the file


def groups() -> dict[str, dict[str, Any]]:
    """Return the calls by group: texts to evaluate, and bad calls of conformance by name."""
    written = {
        "fields": _of_fields(),
        "unknown fields": _of_unknown_fields(),
        "combinations": _COMBINATIONS,
        "serialization": _SERIALIZED,
        "shapes": _SHAPES,
        "dtypes": _DTYPES,
        "values": _VALUES,
        "registry": _REGISTRY,
        "interop": _interop(),
        "torch and jax": _TORCH,
    }
    found: dict[str, dict[str, Any]] = {
        group: {text: text for text in texts} for group, texts in written.items()
    }
    found["conformance"] = {call.name: call for call in (*bad_calls(), *bad_softmax_calls())}
    return found


def of_group(group: str) -> dict[str, Outcome]:
    """Return the outcome of each call of a group."""
    names = dict(NAMES)
    if group == "torch and jax":
        import jax.numpy as jnp
        import torch

        names |= {"torch": torch, "jnp": jnp}
    return {name: _outcome(call, names) for name, call in groups()[group].items()}


def make() -> str:
    """Return the text of the file: each group of calls with their outcomes, one a line."""
    written = [f"{json.dumps(group)}: {lines(of_group(group))}" for group in groups()]
    return "{\n" + ",\n".join(written) + "}\n"


def _outcome(call: Any, names: dict[str, Any]) -> Outcome:
    try:
        with np.errstate(all="ignore"):
            # The texts are those of this file.
            result = eval(call, names) if isinstance(call, str) else _run(call)  # noqa: S307
    except Exception as error:  # noqa: BLE001 - the file keeps every error
        return [type(error).__name__, _own_words(error)]
    return ["", repr(result)]


def _run(call: Any) -> Any:
    if isinstance(call, BadCall):
        return call.spec(
            call.predictions, call.targets, sample_weight=call.sample_weight, mask=call.mask
        )
    return ul.softmax(call.logits, axis=call.axis)


def _own_words(error: Exception) -> str:
    """Return the message without quoted words of Python, NumPy or a framework.

    Those words change with the version of the quoted package.
    """
    message, cause = str(error), error.__cause__
    for quoted in (getattr(cause, "msg", None), str(cause) if cause else None):
        if quoted:
            message = message.replace(quoted, "<quoted>")
    return message

"""Lines of scripts, strings and constants are read as they stand, or say what to leave out."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

import unifiedloss as ul
from unifiedloss.errors import SpecValueError
from unifiedloss.interop import Call, parse
from unifiedloss.interop.keras import STRINGS

CE, WCE = "torch.nn.CrossEntropyLoss", "tf.compat.v1.losses.sigmoid_cross_entropy"
TWO: dict[str, Any] = {"weight": (1.0, 2.0)}


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("criterion = nn.CrossEntropyLoss(label_smoothing=0.1)", CE, {"label_smoothing": 0.1}),
        ("self.loss: nn.Module = nn.CrossEntropyLoss()", CE, {}),
        ("return nn.CrossEntropyLoss()", CE, {}),
        ("  criterion = nn.CrossEntropyLoss()  # the loss", CE, {}),
        ("nn.CrossEntropyLoss().to(device)", CE, {}),
        ("nn.CrossEntropyLoss().to('cuda', non_blocking=True).eval()", CE, {}),
        ("nn.CrossEntropyLoss().cuda()(logits, labels)", CE, {}),
        ("nn.CrossEntropyLoss(torch.tensor([1., 2.], dtype=torch.float32))", CE, TWO),
        ("nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0], device=device))", CE, TWO),
        ("nn.CrossEntropyLoss(weight=torch.FloatTensor([1., 2.]).to(device))", CE, TWO),
        ("nn.CrossEntropyLoss(weight=np.array([1., 2.], np.float32))", CE, TWO),
        ("nn.CrossEntropyLoss(weight=np.array([1., 2.]).astype('float32'))", CE, TWO),
        ("nn.CrossEntropyLoss(reduction='elementwise_mean')", CE, {}),
        ("nn.HuberLoss(reduction='elementwise_mean')", "torch.nn.HuberLoss", {}),
        (
            "loss = F.cross_entropy(logits.view(-1, k), labels, label_smoothing=0.1)",
            "torch.nn.functional.cross_entropy",
            {"label_smoothing": 0.1},
        ),
        (
            "F.cross_entropy(input=logits, target=labels, ignore_index=0)",
            "torch.nn.functional.cross_entropy",
            {"ignore_index": 0},
        ),
        (
            "optax.softmax_cross_entropy(logits, labels, axis=1)",
            "optax.losses.softmax_cross_entropy",
            {"axis": 1},
        ),
        ("sklearn.metrics.log_loss(y, p, sample_weight=w)", "sklearn.metrics.log_loss", {}),
        ("tf.keras.losses.MSE(y, p)", "keras.losses.mean_squared_error", {}),
        ("model.compile('adam', loss='mse')", "keras.losses.MeanSquaredError", {}),
        (
            "model.compile(loss=keras.losses.Huber(delta=2.0), metrics=['mae'])",
            "keras.losses.Huber",
            {"delta": 2.0},
        ),
        ("keras.losses.MeanSquaredError(reduction='auto')", "keras.losses.MeanSquaredError", {}),
        (
            "tf.keras.losses.MeanSquaredError(reduction=tf.keras.losses.Reduction.AUTO)",
            "keras.losses.MeanSquaredError",
            {},
        ),
        (
            "keras.losses.MeanSquaredError(reduction=losses_utils.ReductionV2.SUM)",
            "keras.losses.MeanSquaredError",
            {"reduction": "sum"},
        ),
        (
            "keras.losses.MeanSquaredError(dtype=tf.float64)",
            "keras.losses.MeanSquaredError",
            {"dtype": "float64"},
        ),
        (
            f"{WCE}(y, z, reduction=tf.compat.v1.losses.Reduction.SUM_OVER_BATCH_SIZE)",
            WCE,
            {"reduction": "weighted_sum_over_batch_size"},
        ),
        (f"{WCE}(y, z, reduction=Reduction.NONE)", WCE, {"reduction": "none"}),
        (
            "ul.cross_entropy_loss(logits, labels, from_logits=True)",
            "unifiedloss.CrossEntropyLoss",
            {"from_logits": True},
        ),
    ],
)
def test_lines_are_read(text: str, name: str, arguments: dict[str, Any]) -> None:
    """What changes no number is left out: assignments, tensors of a call, devices, old names."""
    assert parse(text) == Call(name, arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loss += F.mse_loss(a, b)", "write the line of one loss"),
        ("a = 1; nn.MSELoss()", "write the line of one loss"),
        ("criterion(logits, labels)", "criterion is no loss that is known"),
        ("F.cross_entropy(logits, labels, w)", "w stands behind the two tensors: write it with"),
        ("nn.CrossEntropyLoss(weight=w.to(device))", "write the numbers out, or pass the loss"),
        ("nn.CrossEntropyLoss(weight=torch.tensor([0.1]).half())", ".half() is not read: leave"),
        ("nn.CrossEntropyLoss(weight=torch.tensor([0.1], dtype=torch.half))", "the numbers alone"),
        ("nn.CrossEntropyLoss(weight=np.array([0.1]).astype(np.float16))", ".astype(np.float16)"),
        ("nn.MSELoss().double()", ".double() is not read: leave it out, and write nn.MSELoss()"),
        ("nn.MSELoss().to(dtype=torch.float64)", ".to(dtype=torch.float64) is not read"),
        ("nn.MSELoss()(x, y).backward()", ".backward() is not read: leave it out"),
        (
            "optax.l2_loss(p, t).mean()",
            ".mean() is not read: leave it out, and write optax.l2_loss(",
        ),
        ("optax.l2_loss(p, t).mean()", ".replace(reduction='mean')"),
        ("jnp.sum(optax.l2_loss(p, t))", ".replace(reduction='sum')"),
        ("tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, z))", "tf.reduce_mean(...)"),
        ("0.5 * F.mse_loss(a, b)", "computes with a loss: write F.mse_loss(a, b) alone"),
        ("keras.losses.MeanSquaredError(reduction=Reduction.SUMM)", "Did you mean 'SUM'?"),
        ("ce", "'binary_crossentropy', 'categorical_crossentropy' or 'sparse_"),
        ("mae", "mae is another kind of loss"),
    ],
)
def test_lines_that_are_not_read(text: str, says: str) -> None:
    """The message says in one line what to leave out or what to write instead."""
    with pytest.raises(SpecValueError) as raised:
        parse(text)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "nn.MSELoss()" + ".to(x)" * 20000,
        "a" + "()" * 20000,
        "tf.reduce_mean(" * 80 + "x" + ")" * 80,
    ],
)
def test_long_chains_take_no_time(text: str) -> None:
    """Looking for the loss in a chain of calls takes time in proportion to its length."""
    start = time.process_time()
    with contextlib.suppress(SpecValueError):
        parse(text)
    assert time.process_time() - start < 2


@pytest.mark.framework("tensorflow")
def test_constants() -> None:
    """The members of TensorFlow's enumeration stand for the strings that they are there."""
    import tensorflow as tf

    reductions = tf.compat.v1.losses.Reduction
    names = [name for name in vars(reductions) if name.isupper()]
    assert len(names) >= 6
    for name in names:
        written = f"tf.compat.v1.losses.Reduction.{name}"
        value = getattr(reductions, name)
        for text in (written, repr(value)):
            found = ul.from_native(f"{WCE}(reduction={text})")
            assert found == ul.from_native(
                tf.compat.v1.losses.sigmoid_cross_entropy, reduction=value
            )


@pytest.mark.framework("keras")
def test_strings_of_keras() -> None:
    """A string is the loss that compile(loss=...) makes of it, for every string that Keras has."""
    import keras
    from keras.src.losses import ALL_OBJECTS_DICT  # type: ignore[import-untyped]
    from keras.src.trainers.compile_utils import get_loss  # type: ignore[import-untyped]

    for name in ALL_OBJECTS_DICT:
        if name in ("Loss", "LossFunctionWrapper"):  # the bases
            continue
        if name not in STRINGS:
            with pytest.raises(SpecValueError, match=f"^{name} is (?!no loss that is known)"):
                ul.from_native(name)
            continue
        made = get_loss(name, None, None)
        cls = STRINGS[name].rpartition(".")[2]
        own = made if type(made).__name__ == cls else getattr(keras.losses, cls)()
        assert made.reduction == own.reduction
        assert getattr(made, "fn", None) is own.fn
        assert ul.from_native(name) == ul.from_native(f"keras.losses.{cls}()")

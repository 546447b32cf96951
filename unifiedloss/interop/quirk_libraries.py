"""Groups of losses that the quirks name: full names, and beginnings of names, by kind of loss."""

from __future__ import annotations


def each(text: str, *names: str) -> dict[str, str]:
    """Map each of these names to one sentence."""
    return dict.fromkeys(names, text)


TORCH_CE = ("torch.nn.CrossEntropyLoss", "torch.nn.functional.cross_entropy")
TORCH_NLL = ("torch.nn.NLLLoss", "torch.nn.functional.nll_loss")
TORCH_BCE = ("torch.nn.BCEWithLogitsLoss", "torch.nn.functional.binary_cross_entropy_with_logits")
TORCH_CLAMPED = ("torch.nn.BCELoss", "torch.nn.functional.binary_cross_entropy")
TF_DENSE = ("tf.nn.softmax", "tf.compat.v1.losses.softmax")
TF_SPARSE = ("tf.nn.sparse", "tf.compat.v1.losses.sparse")
TF_BINARY = ("tf.nn.sigmoid", "tf.nn.weighted", "tf.compat.v1.losses.sigmoid")
V1 = "tf.compat.v1.losses."
OPTAX_INDEX = "optax.losses.softmax_cross_entropy_with_integer_labels"
OPTAX_DENSE = ("optax.losses.softmax_cross_entropy", "optax.losses.safe_softmax_cross_entropy")
KERAS = tuple(f"keras[{backend}].losses." for backend in ("numpy", "torch", "tensorflow", "jax"))
SPARSE = ("SparseCategoricalCrossentropy", "sparse_categorical_crossentropy")
CATEGORICAL = ("CategoricalCrossentropy", "categorical_crossentropy")
BINARY = ("BinaryCrossentropy", "binary_crossentropy")
SQUARED = ("MeanSquaredError", "mean_squared_error")
OBJECTS = (CATEGORICAL[0], SPARSE[0], BINARY[0], SQUARED[0])


def keras(names: tuple[str, ...], *backends: str) -> tuple[str, ...]:
    """Name these losses of Keras on the given backends, or on all of them."""
    return tuple(
        f"{prefix}{name}"
        for prefix in KERAS
        for name in names
        if not backends or prefix[6:].partition("]")[0] in backends
    )

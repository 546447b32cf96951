"""The constants of other libraries that stand for strings, and the strings they replaced."""

from __future__ import annotations

from dataclasses import dataclass

from unifiedloss.errors import SpecValueError
from unifiedloss.suggestion import suggestion

# Guarded by test_constants of tests/test_interop_tensorflow.py, which reads both enumerations.
_V1 = {
    "NONE": "none",
    "SUM": "weighted_sum",
    "MEAN": "weighted_mean",
    "SUM_OVER_BATCH_SIZE": "weighted_sum_over_batch_size",
    "SUM_OVER_NONZERO_WEIGHTS": "weighted_sum_by_nonzero_weights",
    "SUM_BY_NONZERO_WEIGHTS": "weighted_sum_by_nonzero_weights",
}
"""tf.compat.v1.losses.Reduction."""

_V2 = {
    "AUTO": "auto",
    "NONE": "none",
    "SUM": "sum",
    "SUM_OVER_BATCH_SIZE": "sum_over_batch_size",
}
"""tf.keras.losses.Reduction of Keras 2, and losses_utils.ReductionV2."""

_ENUMERATIONS = ("Reduction", "ReductionV2")

_DTYPES = {"float": "float32", "double": "float64", "half": "float16"} | {
    name: name for name in ("float16", "bfloat16", "float32", "float64")
}
_MODULES_OF_DTYPES = frozenset({"torch", "tf", "np", "numpy", "jnp", "jax.numpy"})


@dataclass(frozen=True)
class Constant:
    """A member of an enumeration of reductions; which string it is may depend on the loss.

    Attributes:
        name: its dotted name, as in "tf.compat.v1.losses.Reduction.SUM".
    """

    name: str

    def value(self, library: str) -> str:
        """The string it stands for, in a loss of this library.

        Raises:
            SpecValueError: the enumeration has no such member.
        """
        path, _, member = self.name.rpartition(".")
        modules = path.split(".")
        of_keras = "ReductionV2" in modules or "keras" in modules
        of_v1 = not of_keras and ("v1" in modules or library == "tensorflow")
        members = _V1 if of_v1 else _V2
        if member not in members:
            known = ", ".join(members)
            msg = f"{self.name}: {path} has {known}, and no {member}.{suggestion(member, members)}"
            raise SpecValueError(msg)
        return members[member]


def constant_of(name: str) -> Constant | str | None:
    """The constant with this dotted name, or the name of a dtype, or None for any other name."""
    path, _, member = name.rpartition(".")
    if path.rpartition(".")[2] in _ENUMERATIONS:
        return Constant(name)
    return _DTYPES.get(member) if path in _MODULES_OF_DTYPES else None

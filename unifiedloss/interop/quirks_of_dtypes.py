"""The quirks about kinds of targets and about dtypes; a part of `QUIRKS` in `quirks`."""

from __future__ import annotations

from unifiedloss.interop import quirk_conditions, quirk_inputs
from unifiedloss.interop.quirk import ELEMENTS, Quirk
from unifiedloss.interop.quirk_libraries import (
    BINARY,
    CATEGORICAL,
    OBJECTS,
    OPTAX_DENSE,
    OPTAX_INDEX,
    SPARSE,
    SQUARED,
    TF_SPARSE,
    TORCH_BCE,
    TORCH_CE,
    TORCH_CLAMPED,
    TORCH_NLL,
    V1,
    each,
    keras,
)
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.spec import Categorical

_MSE = ("torch.nn.MSELoss", "torch.nn.functional.mse_loss")
_V1_LOGITS = (f"{V1}softmax", f"{V1}sparse", f"{V1}sigmoid")

DTYPE_QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "dense_targets",
        (Categorical,),
        "Dense targets are taken as well as class indices.",
        each(
            "Dense targets are an error.",
            *TORCH_NLL,
            *TF_SPARSE,
            OPTAX_INDEX,
            "onnx.",
            *keras(SPARSE),
        )
        | each("Dense targets are an error, unless they are one-hot.", "sklearn."),
        quirk_inputs.soft_row,
        kind="index",
    ),
    Quirk(
        "index_targets",
        (Categorical,),
        "Class indices are taken as well as dense targets.",
        each("Class indices are an error.", *keras(CATEGORICAL), f"{V1}softmax", OPTAX_DENSE[1])
        | each(
            "Class indices are taken for dense targets, and broadcast where their shape allows it.",
            "tf.nn.softmax",
            OPTAX_DENSE[0],
        )
        | {OPTAX_INDEX: ""},
        quirk_inputs.plain_label,
        kind="dense",
    ),
    Quirk(
        "label_types",
        (Categorical,),
        "Labels may have any integer dtype.",
        each("Labels are int64 or uint8; other integers are an error.", *TORCH_CE, *TORCH_NLL)
        | each("Labels are int32 or int64; other integers are an error.", *TF_SPARSE, "onnx."),
        quirk_inputs.narrow_labels,
        kind="index",
    ),
    Quirk(
        "label_types",
        (Categorical,),
        "Labels may have any integer dtype.",
        each("Labels of uint64 are an error.", *keras(SPARSE, "torch"))
        | each("Labels are int64 or uint8; other integers are an error.", *TORCH_CE, *TORCH_NLL)
        | each("Labels are int32 or int64; other integers are an error.", *TF_SPARSE, "onnx."),
        quirk_inputs.unsigned_labels,
        kind="index",
    ),
    Quirk(
        "bool_labels",
        (Categorical,),
        "Bools are no labels.",
        each("Bools are the labels 0 and 1.", *keras(SPARSE), "sklearn."),
        quirk_inputs.bool_labels,
        kind="index",
    ),
    Quirk(
        "integer_targets",
        ELEMENTS,
        "Targets may be integers or bools.",
        each(
            "Targets that are integers or bools are an error.",
            "tf.nn.sigmoid",
            "tf.nn.weighted",
            *TORCH_BCE,
            *TORCH_CLAMPED,
        ),
        quirk_inputs.integer_targets,
    ),
    Quirk(
        "target_dtype",
        ELEMENTS,
        "Targets may have another floating dtype than the predictions.",
        each(
            "Targets of another floating dtype than the predictions' are an error.",
            "tf.nn.sigmoid",
            "tf.nn.weighted",
            *TORCH_CLAMPED,
        )
        | each("", *TORCH_BCE),
        quirk_inputs.wider_targets,
    ),
    Quirk(
        "integer_predictions",
        (Categorical,),
        "Predictions are floating; integers are an error.",
        each(
            "Integers are taken as floating numbers.",
            "sklearn.",
            *keras((SPARSE[0], CATEGORICAL[0]), "tensorflow"),
            *keras((*SPARSE, *CATEGORICAL), "numpy", "jax"),
        ),
        quirk_inputs.integer_rows_of_predictions,
    ),
    Quirk(
        "integer_predictions",
        ELEMENTS,
        "Predictions are floating; integers are an error.",
        each(
            "Integers are taken as floating numbers.",
            "sklearn.",
            f"{V1}log_loss",
            f"{V1}mean",
            *keras(SQUARED, "numpy", "tensorflow", "jax"),
            *keras(BINARY[:1], "tensorflow"),
            *keras(BINARY, "numpy", "jax"),
        ),
        quirk_inputs.integer_predictions,
    ),
    Quirk(
        "result_dtype",
        (Categorical,),
        "The result has the predictions' dtype; a mean or a sum of half types is float32.",
        each(
            "The result has the wider of both dtypes, the predictions' and the targets'.",
            *TORCH_CE,
            *OPTAX_DENSE,
        )
        | each(
            "The result has the predictions' dtype, and so has a mean or a sum of half types.",
            f"{V1}softmax",
        )
        | {OPTAX_INDEX: ""},
        quirk_inputs.other_row_dtype,
        kind="dense",
        of="dtype",
    ),
    Quirk(
        "result_dtype",
        (CrossEntropyLoss,),
        "The result has the predictions' dtype; a mean or a sum of half types is float32.",
        each("The result is a Python float.", "sklearn."),
        quirk_inputs.any_rows,
        predictions="probabilities",
        kind="index",
        of="dtype",
    ),
    Quirk(
        "result_dtype",
        ELEMENTS,
        "The result has the predictions' dtype; a mean or a sum of half types is float32.",
        each(
            "The result has the wider of both dtypes, the predictions' and the targets'.",
            *_MSE,
            "optax.losses.squared",
            "optax.losses.l2",
        )
        | each("The result has the targets' dtype.", *TORCH_BCE)
        | each(
            "The result has the predictions' dtype, and so has a mean or a sum of half types.",
            f"{V1}sigmoid",
        )
        | each("The result is a Python float.", "sklearn."),
        quirk_inputs.other_target_dtype,
        of="dtype",
    ),
    Quirk(
        "half_result",
        (Categorical,),
        "A mean or a sum of half types is float32.",
        each(
            "A mean or a sum of half types has their dtype.",
            *TORCH_CE,
            *TORCH_NLL,
            *_V1_LOGITS,
            "onnx.",
        )
        | each("The result is a Python float.", "sklearn."),
        quirk_inputs.half_rows,
        of="dtype",
        when=quirk_conditions.reduced,
    ),
    Quirk(
        "half_result",
        ELEMENTS,
        "A mean or a sum of half types is float32.",
        each(
            "A mean or a sum of half types has their dtype.",
            *TORCH_BCE,
            *TORCH_CLAMPED,
            *_MSE,
            f"{V1}sigmoid",
        )
        | each("The result is a Python float.", "sklearn."),
        quirk_inputs.half_elements,
        of="dtype",
        when=quirk_conditions.reduced,
    ),
    Quirk(
        "half_mean",
        (CrossEntropyLoss,),
        "Half types are computed in float32; means and sums are float32.",
        each("A mean of half types overflows where their sum does.", *TORCH_CE),
        quirk_inputs.half_overflow_of_rows,
        predictions="logits",
        when=quirk_conditions.averaged,
    ),
    Quirk(
        "half_mean",
        (NegativeLogLikelihoodLoss,),
        "Half types are computed in float32; means and sums are float32.",
        each("A mean of half types overflows where their sum does.", *TORCH_NLL),
        quirk_inputs.half_overflow_of_rows,
        when=quirk_conditions.averaged,
    ),
    Quirk(
        "half_mean",
        (CrossEntropyLoss,),
        "Half types are computed in float32; means and sums are float32.",
        each("Half types are computed in that type.", "sklearn."),
        quirk_inputs.half_rows,
        predictions="probabilities",
        of="digits",
        digits=1e-4,
        when=quirk_conditions.of_sklearn,
    ),
    Quirk(
        "half_sum",
        (CrossEntropyLoss,),
        "A sum of half types is float32.",
        each(
            "A sum of half types has their dtype, and overflows in it.",
            *TORCH_CE,
            *_V1_LOGITS,
            "onnx.",
        ),
        quirk_inputs.half_overflow_of_rows,
        predictions="logits",
        when=quirk_conditions.summed,
    ),
    Quirk(
        "half_sum",
        (NegativeLogLikelihoodLoss,),
        "A sum of half types is float32.",
        each("A sum of half types has their dtype, and overflows in it.", *TORCH_NLL, "onnx."),
        quirk_inputs.half_overflow_of_rows,
        when=quirk_conditions.summed,
    ),
    Quirk(
        "half_sum",
        (BinaryCrossEntropyLoss,),
        "A sum of half types is float32.",
        each(
            "A sum of half types has their dtype, and overflows in it.", *TORCH_BCE, f"{V1}sigmoid"
        ),
        quirk_inputs.half_overflow_of_logits,
        predictions="logits",
        when=quirk_conditions.summed,
    ),
    Quirk(
        "half_sum",
        (BinaryCrossEntropyLoss,),
        "A sum of half types is float32.",
        each("A sum of half types has their dtype, and overflows in it.", *TORCH_CLAMPED),
        quirk_inputs.half_overflow_of_probabilities,
        predictions="probabilities",
        when=quirk_conditions.summed,
    ),
    Quirk(
        "half_gradient",
        (BinaryCrossEntropyLoss,),
        "Half types are computed in float32, the bounds of gradients too.",
        each(
            "1e-12, which bounds the denominator of the gradient, is 0 in float16: where p = t, "
            "0 / 0 is NaN.",
            *TORCH_CLAMPED,
            *keras(BINARY[1:], "torch"),
        )
        | each("", *keras(BINARY[1:], "numpy", "tensorflow", "jax")),
        quirk_inputs.half_certain,
        predictions="probabilities",
        of="gradient",
        when=quirk_conditions.clipped_otherwise,
    ),
    Quirk(
        "half_clip",
        (BinaryCrossEntropyLoss,),
        "1 - 1e-7 is 1 in a half type, and 0 log 0 = 0: a probability of 1 costs 0 where the "
        "target is 1.",
        each(
            "1 - 1e-7 is 1 in a half type, and 0 times infinity NaN: a probability of 1 makes the "
            "loss NaN.",
            *keras(BINARY[1:], "numpy", "tensorflow", "jax"),
        ),
        quirk_inputs.half_certain,
        predictions="probabilities",
        when=quirk_conditions.clipped_unsmoothed,
    ),
    Quirk(
        "half_clip",
        (BinaryCrossEntropyLoss,),
        "1 - 1e-7 is 1 in a half type: a probability of 1 whose target is 0 has an infinite loss.",
        each(
            "Logarithms are held at -100: a float16 probability of 1 whose target is 0 costs 100.",
            *keras(BINARY[1:], "torch"),
        ),
        quirk_inputs.half_wrong,
        predictions="probabilities",
        when=quirk_conditions.clipped_as_keras,
    ),
    Quirk(
        "half_rounding",
        (CrossEntropyLoss,),
        "Half types are computed in float32 and rounded once; means and sums are float32.",
        each(
            "Probabilities are divided and clipped in the half type.",
            *keras(CATEGORICAL[1:]),
            *keras(SPARSE[1:], "numpy", "torch", "jax"),
        ),
        quirk_inputs.half_probabilities,
        predictions="probabilities",
        of="digits",
    ),
    Quirk(
        "half_rounding",
        (BinaryCrossEntropyLoss,),
        "Half types are computed in float32 and rounded once; means and sums are float32.",
        each(
            "The terms of the loss are rounded to the half type before they are added.",
            *TORCH_BCE,
            "tf.nn.weighted",
            *keras(BINARY[1:], "torch"),
        ),
        quirk_inputs.half_logit,
        predictions="logits",
        of="digits",
    ),
    Quirk(
        "target_rounding",
        (CrossEntropyLoss,),
        "Smoothed targets are not rounded to a narrower dtype than float32.",
        each("Smoothed targets are rounded to the dtype that the targets have.", *TORCH_CE),
        quirk_inputs.half_row_of_targets,
        predictions="logits",
        kind="dense",
        of="digits",
        digits=1e-4,
        when=quirk_conditions.smoothed,
    ),
    Quirk(
        "target_rounding",
        (BinaryCrossEntropyLoss,),
        "Losses are not rounded to the targets' dtype.",
        each("Losses are rounded to the half type that the targets have.", *TORCH_BCE),
        quirk_inputs.half_targets,
        predictions="logits",
        of="digits",
        digits=1e-4,
    ),
    Quirk(
        "target_rounding",
        (BinaryCrossEntropyLoss,),
        "Smoothed targets are not rounded to a narrower dtype than float32.",
        each(
            "Smoothed targets are rounded to the half type of the predictions.",
            f"{V1}sigmoid",
            *keras(BINARY[1:]),
        ),
        quirk_inputs.half_element,
        of="digits",
        when=quirk_conditions.smoothed,
    ),
    Quirk(
        "bfloat16",
        (Categorical,),
        "Predictions may be bfloat16.",
        each("bfloat16 is an error in onnxruntime.", "onnx."),
        quirk_inputs.bfloat16_rows,
        when=quirk_conditions.of_sklearn_or_onnx,
    ),
    Quirk(
        "bfloat16",
        (MeanSquaredError,),
        "Predictions may be bfloat16.",
        each("bfloat16 is an error.", "sklearn."),
        quirk_inputs.bfloat16_elements,
        when=quirk_conditions.of_sklearn_or_onnx,
    ),
    Quirk(
        "bool_weight",
        (Categorical,),
        "Sample weights are numbers; bools are an error, and belong in the mask.",
        each("Bools are the sample weights 0 and 1.", *keras(OBJECTS), V1, "sklearn."),
        quirk_inputs.bool_weight_of_a_row,
    ),
    Quirk(
        "bool_weight",
        ELEMENTS,
        "Sample weights are numbers; bools are an error, and belong in the mask.",
        each("Bools are the sample weights 0 and 1.", *keras(OBJECTS), V1, "sklearn."),
        quirk_inputs.bool_weight,
    ),
)
"""The quirks that depend on the kinds of targets, or on the dtypes of tensors."""

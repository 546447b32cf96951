"""The quirks: rules of other libraries' losses that no field of a spec can express.

A quirk changes the result only for certain tensors, so a loss with quirks is imported all the same.
`unifiedloss.interop.refusals` lists the arguments that keep a loss from being imported.

Each quirk names the losses that have it. tests/test_interop_diff.py runs every importable loss
on every input of every quirk to check these lists.
"""

from __future__ import annotations

from unifiedloss.interop import quirk_conditions, quirk_inputs
from unifiedloss.interop.library_loss import Call
from unifiedloss.interop.quirk import ELEMENTS, Quirk
from unifiedloss.interop.quirk_libraries import (
    BINARY,
    CATEGORICAL,
    OBJECTS,
    OPTAX_DENSE,
    OPTAX_INDEX,
    SPARSE,
    SQUARED,
    TF_BINARY,
    TF_DENSE,
    TF_SPARSE,
    TORCH_BCE,
    TORCH_CE,
    TORCH_CLAMPED,
    TORCH_NLL,
    V1,
    each,
    keras,
)
from unifiedloss.interop.quirks_of_dtypes import DTYPE_QUIRKS
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.spec import Categorical, Loss
from unifiedloss.text import Text

QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        "bad_index",
        (Categorical,),
        "A label outside 0..K-1 is an error (NaN under tracing).",
        {
            OPTAX_INDEX: "Labels -1 to -K count from the end; any other that is no class gives "
            "NaN, with a finite gradient.",
            **each("Negative labels count from the end.", "onnx."),
            **each("A label that is no class costs 0.", *keras(SPARSE, "jax")),
            **each("A negative label costs 0.", *keras(SPARSE, "numpy", "torch")),
        },
        quirk_inputs.bad_labels,
    ),
    Quirk(
        "compiled_checks",
        (Categorical,),
        "A label outside 0..K-1 is an error where values can be read, and NaN in loss and gradient "
        "under tracing.",
        each("A label outside 0..K-1 is an error, and under XLA NaN.", *TF_SPARSE),
        quirk_inputs.compiled,
        kind="index",
    ),
    Quirk(
        "target_kind",
        (Categorical,),
        "Integer targets are class indices, floating ones rows of a dense target.",
        each("Dense targets may be integers.", *TF_DENSE, OPTAX_DENSE[0], *keras(CATEGORICAL)),
        quirk_inputs.integer_rows,
        kind="dense",
    ),
    Quirk(
        "label_dtype",
        (Categorical,),
        "A floating target is a dense one; labels are integers.",
        each("Floating labels are cut off: 1.7 is class 1.", *keras(SPARSE))
        | each("Floating labels are taken where they are whole.", "sklearn."),
        quirk_inputs.floating_labels,
        kind="index",
    ),
    Quirk(
        "target_sum",
        (Categorical,),
        "A dense row with the sum T has the gradient T p - t.",
        each(
            "The gradient is p - t, as if every dense row had the sum 1.",
            *TF_DENSE,
            *keras(CATEGORICAL, "tensorflow"),
        ),
        quirk_inputs.unnormalized,
        predictions="logits",
        kind="dense",
        of="gradient",
    ),
    Quirk(
        "target_range",
        (BinaryCrossEntropyLoss,),
        "A target outside [0, 1] is an error (NaN under tracing).",
        each(
            "Targets outside [0, 1] are taken as they are.",
            *TORCH_BCE,
            *TF_BINARY,
            "optax.losses.sigmoid",
            *keras(BINARY),
        ),
        quirk_inputs.out_of_range_target,
        predictions="logits",
    ),
    Quirk(
        "target_range",
        (BinaryCrossEntropyLoss,),
        "A target outside [0, 1] is an error (NaN under tracing).",
        each(
            "Targets outside [0, 1] are taken as they are.",
            f"{V1}log_loss",
            *keras(BINARY, "numpy", "tensorflow", "jax"),
        ),
        quirk_inputs.out_of_range_target,
        predictions="probabilities",
    ),
    Quirk(
        "dense_range",
        (CrossEntropyLoss,),
        "A negative or infinite entry of a dense target is an error (NaN under tracing).",
        each(
            "Negative and infinite entries of dense targets are taken as they are.",
            *TORCH_CE,
            *TF_DENSE,
            *OPTAX_DENSE,
            *keras(CATEGORICAL),
        ),
        quirk_inputs.infinite_row,
        kind="dense",
    ),
    Quirk(
        "zero_times_infinity",
        (Categorical,),
        "0 log 0 = 0: a class with the logit -inf and the target 0 adds nothing.",
        each(
            "0 times infinity is NaN: a class with the logit -inf and the target 0 makes the loss "
            "NaN, where targets are dense.",
            *TORCH_CE,
            *TF_DENSE,
            OPTAX_DENSE[0],
            *keras(CATEGORICAL),
        ),
        quirk_inputs.minus_infinity,
        predictions="logits",
        kind="dense",
    ),
    Quirk(
        "zero_times_infinity",
        (CrossEntropyLoss,),
        "0 log 0 = 0: a class with the logit -inf and the target 0 adds nothing.",
        each(
            "0 times infinity is NaN: labels become one-hot rows, and a logit of -inf in another "
            "class makes the loss NaN.",
            *keras(SPARSE, "numpy", "jax"),
        ),
        quirk_inputs.infinite_logit_of_another,
        predictions="logits",
        kind="index",
    ),
    Quirk(
        "infinite_logit",
        (BinaryCrossEntropyLoss,),
        "At an infinite logit the loss is 0 where the label agrees, and infinite where not.",
        each(
            "An infinite logit makes the loss NaN.",
            *TORCH_BCE,
            *TF_BINARY,
            "optax.losses.sigmoid",
            *keras(BINARY),
        ),
        quirk_inputs.infinite_logit,
        predictions="logits",
    ),
    Quirk(
        "plus_infinity",
        (CrossEntropyLoss,),
        "A row with the logit +inf is NaN.",
        {
            OPTAX_INDEX: "A logit of +inf makes the loss of the other classes infinite, and their "
            "gradient finite."
        },
        quirk_inputs.infinite_logits,
        predictions="logits",
        of="gradient",
    ),
    Quirk(
        "offset",
        (CrossEntropyLoss,),
        "An offset common to all logits of a row changes nothing.",
        {
            OPTAX_INDEX: "The row's largest logit is subtracted from one term alone, which costs "
            "digits of large ones (optax#1792)."
        },
        quirk_inputs.large,
        predictions="logits",
    ),
    Quirk(
        "confident_row",
        (CrossEntropyLoss,),
        "A confident row keeps its loss where the backend can hold it: NumPy and exact rounding "
        "do, the other kernels give 0.",
        each(
            "The loss of a confident row is 0: the logarithm of 1 + x is that of 1.",
            *TORCH_CE,
            *TF_DENSE,
            *TF_SPARSE,
            "optax.losses.s",
            "onnx.Softmax",
            *keras(CATEGORICAL),
            *keras(SPARSE),
        ),
        quirk_inputs.confident,
        predictions="logits",
        of="digits",
    ),
    Quirk(
        "half_rounding",
        (CrossEntropyLoss,),
        "Half types are computed in float32 and rounded once; means and sums are float32.",
        each(
            "The log-softmax is rounded to the half type before the loss is formed.",
            *TORCH_CE,
            "optax.losses.s",
            *keras(SPARSE[1:], "torch", "jax", "numpy"),
            *keras(CATEGORICAL[1:], "torch", "jax", "numpy"),
        ),
        quirk_inputs.half,
        predictions="logits",
        of="digits",
    ),
    Quirk(
        "half_mean",
        (MeanSquaredError,),
        "Half types are computed in float32; means and sums are float32.",
        each(
            "Means and sums have the dtype of the predictions, and overflow in it.",
            "torch.nn.MSELoss",
            "torch.nn.functional.mse_loss",
            "sklearn.",
        )
        | {"optax.losses.l2_loss": "The square of a half type overflows before it is halved."},
        quirk_inputs.half_overflow,
    ),
    Quirk(
        "float64",
        (Categorical,),
        "float64 predictions are computed in float64.",
        each("The losses are rounded to float32, though float64 is returned.", f"{V1}s")
        | each("Everything is float32, unless jax_enable_x64 is set.", "optax.")
        | each(
            "A function of Keras' works in float32.",
            *keras((SPARSE[1], CATEGORICAL[1]), "jax"),
            *keras((SPARSE[1], CATEGORICAL[1]), "numpy"),
        ),
        quirk_inputs.double,
        of="digits",
        digits=1e-9,
    ),
    Quirk(
        "float64_elements",
        ELEMENTS,
        "float64 predictions are computed in float64.",
        each("The losses are rounded to float32, though float64 is returned.", f"{V1}sigmoid")
        | each("Everything is float32, unless jax_enable_x64 is set.", "optax.")
        | each(
            "A function of Keras' works in float32.",
            *keras((BINARY[1], SQUARED[1]), "jax", "torch", "numpy"),
        ),
        quirk_inputs.double_elements,
        of="digits",
        digits=1e-9,
    ),
    Quirk(
        "sign_of_zero",
        (Categorical,),
        "A loss of 0 is +0.",
        each(
            "A loss of 0 can be -0.",
            *TORCH_CE,
            *OPTAX_DENSE,
            "onnx.Softmax",
            *keras(SPARSE, "jax"),
            *keras(CATEGORICAL, "jax"),
            *keras((SPARSE[1], CATEGORICAL[1]), "torch", "numpy"),
        )
        | {OPTAX_INDEX: ""},
        quirk_inputs.sure,
        predictions="logits",
        of="sign",
    ),
    Quirk(
        "probability_range",
        (BinaryCrossEntropyLoss,),
        "A number outside [0, 1] is no probability: an error (NaN under tracing).",
        each("Numbers outside [0, 1] are clipped into it.", *keras(BINARY))
        | each("Numbers outside [0, 1] are taken as they are.", f"{V1}log_loss"),
        quirk_inputs.beyond_one,
        predictions="probabilities",
    ),
    Quirk(
        "probability_range",
        (CrossEntropyLoss,),
        "A number outside [0, 1] that is read is no probability: an error (NaN under tracing). "
        "Renormalizing reads whole rows.",
        each(
            "Numbers outside [0, 1] are divided by the sum of their row, whatever it is, and "
            "clipped.",
            *keras(CATEGORICAL),
            *keras(SPARSE, "numpy", "torch", "jax"),
        )
        | each("Numbers outside [0, 1] are clipped into it.", *keras(SPARSE, "tensorflow"))
        | each("Every probability is checked, also one that is not read.", "sklearn."),
        quirk_inputs.no_probability,
        predictions="probabilities",
    ),
    Quirk(
        "rounded_probability",
        (BinaryCrossEntropyLoss,),
        "A probability beyond 1 by no more than rounding counts as 1.",
        each("A probability beyond 1 by the least is an error.", *TORCH_CLAMPED)
        | each(
            "A probability beyond 1 is taken as it is: the logarithm of a negative number is NaN.",
            f"{V1}log_loss",
        ),
        quirk_inputs.beyond_one_by_rounding,
        predictions="probabilities",
    ),
    Quirk(
        "rounded_probability",
        (CrossEntropyLoss,),
        "A probability beyond 1 by no more than rounding counts as 1.",
        each("A probability beyond 1 by the least is an error.", "sklearn."),
        quirk_inputs.row_beyond_one_by_rounding,
        predictions="probabilities",
    ),
    Quirk(
        "nan_probability",
        (BinaryCrossEntropyLoss,),
        "A probability or a target that is NaN makes the loss NaN, and its gradient.",
        each("NaN is an error.", *TORCH_CLAMPED, *keras(BINARY, "torch"))
        | each(
            "Clipping passes no gradient on to a probability that is NaN: it is 0.",
            *keras(BINARY, "tensorflow"),
        ),
        quirk_inputs.nan_probability_or_target,
        predictions="probabilities",
        of="gradient",
    ),
    Quirk(
        "nan_probability",
        (CrossEntropyLoss,),
        "A probability that is NaN makes the loss NaN where it is read, and its gradient.",
        each("NaN is an error wherever it is.", "sklearn.")
        | each(
            "Clipping passes no gradient on to a probability that is NaN: it is 0.",
            *keras(SPARSE, "tensorflow"),
        ),
        quirk_inputs.nan_label_probability,
        predictions="probabilities",
        of="gradient",
    ),
    Quirk(
        "not_finite",
        (MeanSquaredError,),
        "Numbers that are not finite follow the formula.",
        each("Infinity and NaN are errors.", "sklearn."),
        quirk_inputs.infinite_element,
    ),
    Quirk(
        "subnormal",
        (BinaryCrossEntropyLoss,),
        "Probabilities below the smallest normal number count as 0.",
        each("Subnormal numbers have their own logarithms.", *TORCH_CLAMPED),
        quirk_inputs.subnormal,
        predictions="probabilities",
    ),
    Quirk(
        "subnormal",
        (CrossEntropyLoss,),
        "Probabilities below the smallest normal number count as 0, and a row of zeros cannot be "
        "renormalized: it is NaN.",
        each(
            "A row is divided by its sum, also where that is a subnormal number.",
            *keras((*CATEGORICAL, *SPARSE), "numpy", "torch"),
        ),
        quirk_inputs.subnormal_row,
        predictions="probabilities",
        when=quirk_conditions.renormalizing,
    ),
    Quirk(
        "zero_times_log",
        (BinaryCrossEntropyLoss,),
        "0 log 0 = 0, also where nothing is added to a probability.",
        {
            f"{V1}log_loss": "0 times infinity is NaN: with epsilon=0 a probability of 0 or 1 "
            "makes the loss NaN, whatever the target is."
        },
        quirk_inputs.zero_and_zero,
        predictions="probabilities",
        when=quirk_conditions.adding_nothing,
    ),
    Quirk(
        "confident_element",
        (BinaryCrossEntropyLoss,),
        "A logit far on the side of its target keeps its loss.",
        each(
            "The loss of a logit far below 0, whose target is 0, is 0: it is a difference of two "
            "numbers that round to one.",
            *TORCH_BCE,
            "tf.nn.weighted",
            *keras(BINARY, "torch"),
        ),
        quirk_inputs.confident_element,
        predictions="logits",
        of="digits",
    ),
    Quirk(
        "small_pos_weight",
        (BinaryCrossEntropyLoss,),
        "A small pos_weight keeps its digits.",
        each(
            "The factor of the positive term is 1 + (q - 1) t: a pos_weight q that is small beside "
            "1 loses its digits, or is 0.",
            *TORCH_BCE,
            "tf.nn.weighted",
        ),
        quirk_inputs.logit_and_small_weight,
        predictions="logits",
        of="digits",
        when=quirk_conditions.small_pos_weight,
    ),
    Quirk(
        "subnormal_weight",
        (BinaryCrossEntropyLoss,),
        "A pos_weight below the smallest normal number counts as 0.",
        each("A subnormal pos_weight has a gradient.", *TORCH_BCE),
        quirk_inputs.logit_and_small_weight,
        predictions="logits",
        of="gradient_digits",
        when=quirk_conditions.subnormal_pos_weight,
    ),
    Quirk(
        "gradient_at_zero",
        (BinaryCrossEntropyLoss,),
        "The gradient at the logit 0 is (1 - t' - q t') / 2.",
        {
            "tf.nn.weighted": "The gradient at the logit 0 is 1 - t, on one side of the true one: "
            "the parts of the formula have kinks there."
        },
        quirk_inputs.zero_logit,
        predictions="logits",
        of="gradient",
    ),
    Quirk(
        "clip_tie",
        (BinaryCrossEntropyLoss,),
        "Exactly on the bound nothing is clipped, and the gradient is that of the formula.",
        each("Exactly on the bound the gradient is half of the formula's.", *keras(BINARY, "jax")),
        quirk_inputs.at_the_bound,
        predictions="probabilities",
        of="gradient",
    ),
    Quirk(
        "hidden_logits",
        (CrossEntropyLoss,),
        "Where predictions came from is not looked at.",
        each(
            "Predictions that came from keras.ops.softmax are set aside for the logits they came "
            "from.",
            *keras(CATEGORICAL, "tensorflow"),
            *keras(SPARSE, "tensorflow"),
        ),
        quirk_inputs.behind_softmax,
        predictions="probabilities",
    ),
    Quirk(
        "hidden_logits_in_a_graph",
        (BinaryCrossEntropyLoss,),
        "Where predictions came from is not looked at.",
        each(
            "In a tf.function, predictions that came from a sigmoid are set aside for the logits "
            "they came from.",
            *keras(BINARY, "tensorflow"),
        ),
        quirk_inputs.behind_sigmoid,
        predictions="probabilities",
    ),
    Quirk(
        "weight_dtype",
        (Categorical,),
        "The weights of a spec are computed with in the dtype of the predictions.",
        each(
            "Class weights keep the dtype they were made in, float32 by default: with labels, "
            "predictions of another are an error.",
            *TORCH_CE,
            *TORCH_NLL,
        ),
        quirk_inputs.double,
        kind="index",
        when=quirk_conditions.weighted,
    ),
    Quirk(
        "weight_dtype",
        (Categorical,),
        "The weights of a spec are computed with in the dtype of the predictions.",
        each(
            "A model keeps the dtype it was made for, float32 by default, in weights and inputs: "
            "predictions of another are an error.",
            "onnx.",
        ),
        quirk_inputs.double,
        kind="index",
        when=quirk_conditions.of_an_object,
    ),
    Quirk(
        "weight_dtype",
        ELEMENTS,
        "The weights of a spec are computed with in the dtype of the predictions.",
        each(
            "The weights of a float32 loss are rounded to float32 whatever the predictions are.",
            "torch.nn.functional.mse_loss",
            *TORCH_BCE,
            *TORCH_CLAMPED,
        )
        | {
            "tf.nn.weighted": "A tensor of positive weights keeps its dtype: float32 beside logits "
            "of another is an error."
        },
        quirk_inputs.double_beside_weights,
        when=quirk_conditions.narrow_weights,
    ),
    Quirk(
        "nan_in_ignored",
        (Categorical,),
        "Nothing in an ignored position is read: its gradient is 0 even where it holds NaN.",
        each("An ignored position that holds NaN has the gradient NaN.", *TORCH_CE),
        quirk_inputs.dropped_nan,
        of="gradient",
    ),
    Quirk(
        "nan_in_weightless",
        ELEMENTS,
        "Nothing in a position with sample weight 0 is read.",
        each(
            "0 times NaN is NaN: a position with sample weight 0 that holds NaN makes the loss "
            "NaN.",
            *keras(OBJECTS),
            V1,
        )
        | each("NaN is an error wherever it is.", "sklearn."),
        quirk_inputs.switched_off_nan,
    ),
    Quirk(
        "nan_in_weightless",
        (CrossEntropyLoss,),
        "Nothing in a position with sample weight 0 is read.",
        each(
            "0 times NaN is NaN: a position with sample weight 0 that holds NaN makes the loss "
            "NaN.",
            *keras(OBJECTS),
            V1,
        )
        | each("NaN is an error wherever it is.", "sklearn."),
        quirk_inputs.switched_off_row,
    ),
    Quirk(
        "nan_in_weightless",
        (NegativeLogLikelihoodLoss,),
        "The log-probability of a class with weight 0 is not read.",
        each(
            "0 times NaN is NaN: the log-probability of a class with weight 0 is read all the "
            "same.",
            *TORCH_NLL,
            "onnx.",
        ),
        quirk_inputs.weightless_class,
        kind="index",
        when=quirk_conditions.weightless,
    ),
    Quirk(
        "nan_in_weightless",
        ELEMENTS,
        "Nothing in an element with weight 0 is read.",
        each(
            "0 times NaN is NaN: an element with weight 0 is read all the same.",
            "torch.nn.functional.mse_loss",
            *TORCH_BCE,
            *TORCH_CLAMPED,
        ),
        quirk_inputs.weightless_elements,
        when=quirk_conditions.weightless,
    ),
    Quirk(
        "weightless_infinity",
        (CrossEntropyLoss,),
        "A label whose class has the weight 0 adds nothing, also where its logit is -inf.",
        each(
            "0 times infinity is NaN: a label whose class has the weight 0 and the logit -inf "
            "makes the loss NaN.",
            *TORCH_CE,
            "onnx.Softmax",
        ),
        quirk_inputs.infinite_class,
        predictions="logits",
        kind="index",
        when=quirk_conditions.weightless,
    ),
    Quirk(
        "weightless_infinity",
        (CrossEntropyLoss,),
        "A class with the weight 0 adds nothing to the smoothing, also where its logit is -inf.",
        each(
            "0 times infinity is NaN: a class with the weight 0 and the logit -inf makes the loss "
            "NaN, where labels are smoothed.",
            *TORCH_CE,
        ),
        quirk_inputs.infinite_other_class,
        predictions="logits",
        kind="index",
        when=quirk_conditions.smoothed_weightless,
    ),
    Quirk(
        "weightless_mean",
        (Categorical,),
        "A mean with nothing to divide by has the gradient 0.",
        each(
            "A mean of positions whose classes have the weight 0 is 0 / 0, and its gradient NaN.",
            *TORCH_CE,
            *TORCH_NLL,
        ),
        quirk_inputs.no_class_weight,
        kind="index",
        of="gradient",
        when=quirk_conditions.weightless,
    ),
    Quirk(
        "weightless_mean",
        ELEMENTS,
        "A mean with nothing to divide by has the gradient 0.",
        {
            "torch.nn.functional.mse_loss": "A mean whose weights are 0 is 0 / 0, and its gradient "
            "NaN."
        },
        quirk_inputs.no_element_weight,
        of="gradient",
        when=quirk_conditions.weightless,
    ),
    Quirk(
        "shapes",
        ELEMENTS,
        "Predictions and targets have one shape; nothing is squeezed or broadcast.",
        each(
            "Shapes broadcast: (2, 1) against (2,) is (2, 2).",
            "torch.nn.MSELoss",
            "torch.nn.functional.mse_loss",
            "optax.losses.sigmoid",
        )
        | each(
            "An axis of length 1 at the end is squeezed or added.",
            *keras(OBJECTS),
            *keras(SQUARED),
            "sklearn.",
        ),
        quirk_inputs.column,
    ),
    Quirk(
        "label_shape",
        (Categorical,),
        "There is one label per position; nothing is squeezed or broadcast.",
        each("Fewer labels than rows broadcast.", OPTAX_INDEX)
        | each("Fewer labels than rows are accepted, and only their rows count.", "onnx."),
        quirk_inputs.one_label,
        kind="index",
    ),
    Quirk(
        "dense_shape",
        (Categorical,),
        "Dense targets have the predictions' shape; nothing is broadcast.",
        each(
            "Dense targets broadcast: one row is that of every row of the predictions.",
            "tf.nn.softmax",
            *OPTAX_DENSE,
        )
        | each("An axis of length 1 at the end is squeezed or added.", *keras(CATEGORICAL[:1]))
        | {OPTAX_INDEX: ""},
        quirk_inputs.one_row_for_two,
        kind="dense",
    ),
    Quirk(
        "label_column",
        (Categorical,),
        "Labels have the predictions' shape without the class axis.",
        each(
            "An axis of length 1 at the end of the labels is squeezed.",
            *keras(SPARSE),
            f"{V1}sparse",
            "sklearn.",
        ),
        quirk_inputs.label_column,
        kind="index",
    ),
    Quirk(
        "one_axis",
        ELEMENTS,
        "An average over the last axis needs an axis that is left.",
        each(
            "Predictions with one axis are averaged to one number before they are weighted.",
            *keras(BINARY),
            *keras(SQUARED),
        ),
        quirk_inputs.one_axis,
    ),
    Quirk(
        "weight_alignment",
        ELEMENTS,
        "Sample weights align to the first axes: one number per example is repeated over its "
        "steps.",
        each(
            "Sample weights broadcast to the last axes: one number per example scales the steps.",
            *keras(OBJECTS),
        )
        | each("Predictions have two axes at most.", "sklearn."),
        quirk_inputs.steps,
    ),
    Quirk(
        "weight_alignment",
        (CrossEntropyLoss,),
        "Sample weights align to the first axes: one number per example is repeated over its "
        "steps.",
        each(
            "Sample weights broadcast to the last axes: one number per example scales the steps.",
            *keras(OBJECTS),
        ),
        quirk_inputs.weighted_sequences,
    ),
    Quirk(
        "weight_shape",
        ELEMENTS,
        "Sample weights have the shape of the per-position loss or a leading part of it.",
        each("Sample weights broadcast, axes of length 1 included.", *keras(OBJECTS), V1)
        | each("Sample weights have one axis: one for each example.", "sklearn."),
        quirk_inputs.weights_of_elements,
    ),
    Quirk(
        "weight_shape",
        (CrossEntropyLoss,),
        "Sample weights have the shape of the per-position loss or a leading part of it.",
        each("Sample weights broadcast, axes of length 1 included.", *keras(OBJECTS), V1)
        | each("Sample weights have one axis: one for each example.", "sklearn."),
        quirk_inputs.repeated_sequences,
    ),
    Quirk(
        "empty_batch",
        (Categorical,),
        "An empty batch has one mean, which on_empty says.",
        each("An empty batch gives an empty array.", *keras(OBJECTS))
        | {
            "onnx.Softmax": "An empty batch fails; rows without positions give 0.",
            "onnx.Negative": "An empty batch gives 0.",
        },
        quirk_inputs.empty_axes,
    ),
    Quirk(
        "no_elements",
        ELEMENTS,
        "An empty batch has one mean, which on_empty says.",
        each("An empty batch gives an empty array.", *keras(OBJECTS)),
        quirk_inputs.no_elements,
    ),
    Quirk(
        "empty_batch",
        (CrossEntropyLoss,),
        "An empty batch, or one whose sample weights are all 0, has the sum 0.",
        each("An empty batch, or one whose sample weights are all 0, is an error.", "sklearn."),
        quirk_inputs.nothing_that_counts,
        predictions="probabilities",
        when=quirk_conditions.sum_of_sklearn,
    ),
    Quirk(
        "empty_last_axis",
        ELEMENTS,
        "An average over the last axis needs elements.",
        each("An average over no elements is NaN.", *keras(BINARY), *keras(SQUARED)),
        quirk_inputs.no_last_axis,
    ),
    Quirk(
        "no_classes",
        (CrossEntropyLoss,),
        "Predictions without classes are an error.",
        each(
            "Predictions without classes give 0, NaN or an infinite loss.",
            *TORCH_CE,
            "optax.losses.s",
            *TF_DENSE,
            *keras(CATEGORICAL, "tensorflow", "torch", "jax"),
            *keras(SPARSE, "jax"),
        ),
        quirk_inputs.no_classes,
        predictions="logits",
    ),
    Quirk(
        "no_classes",
        (CrossEntropyLoss,),
        "Predictions without classes are an error.",
        each(
            "Predictions without classes give 0, NaN or an infinite loss.",
            *keras(CATEGORICAL),
            *keras(SPARSE, "numpy", "jax"),
        ),
        quirk_inputs.no_classes,
        predictions="probabilities",
    ),
    Quirk(
        "class_weight_count",
        (Categorical,),
        "There is one class weight for each class.",
        each("There may be more class weights than classes.", "onnx."),
        quirk_inputs.too_few_classes,
        when=quirk_conditions.weighted,
    ),
    Quirk(
        "element_weight_shape",
        ELEMENTS,
        "Weights of elements align to the last axes, and are repeated over the others.",
        {"torch.nn.functional.mse_loss": "Weights of elements have the predictions' shape."},
        quirk_inputs.other_than_weights,
        when=quirk_conditions.element_weighted,
    ),
    Quirk(
        "pos_weight_shape",
        (BinaryCrossEntropyLoss,),
        "There is one pos_weight for each entry of its axis.",
        {"tf.nn.weighted": "Predictions broadcast to the pos_weights."},
        quirk_inputs.fewer_than_pos_weights,
        predictions="logits",
        when=quirk_conditions.several_pos_weights,
    ),
    Quirk(
        "pos_weight_axes",
        (BinaryCrossEntropyLoss,),
        "The losses have the predictions' shape.",
        {
            "tf.nn.weighted": "A pos_weight with more axes than the predictions gives the losses "
            "as many."
        },
        quirk_inputs.logit_and_small_weight,
        predictions="logits",
        of="shape",
        when=quirk_conditions.pos_weight_of_many_axes,
    ),
    Quirk(
        "ignored_dense",
        (CrossEntropyLoss,),
        "With dense targets an ignored label that is no class has no effect.",
        each("With dense targets an ignore_index that is not negative is an error.", *TORCH_CE),
        quirk_inputs.class_to_ignore,
        predictions="logits",
        kind="dense",
        when=quirk_conditions.ignoring,
    ),
    Quirk(
        "weightless_label",
        (Categorical,),
        "The label of a position with sample weight 0 is not read.",
        each(
            "Labels are checked also where the sample weight is 0.",
            *keras(SPARSE[:1], "numpy", "torch", "tensorflow"),
            f"{V1}sparse",
            "sklearn.",
        ),
        quirk_inputs.weightless_label,
    ),
    Quirk(
        "weightless_target",
        (BinaryCrossEntropyLoss,),
        "The target of a position with sample weight 0 is not read.",
        each("Targets are checked also where the sample weight is 0.", *keras(BINARY[:1], "torch")),
        quirk_inputs.weightless_target,
        predictions="probabilities",
    ),
    Quirk(
        "four_axes",
        (CrossEntropyLoss,),
        "The gradient has the predictions' shape, whatever the number of axes.",
        each(
            "The gradient of predictions with four axes is an error: the memory of its array is "
            "not laid out as PyTorch asks for.",
            *keras(SPARSE, "torch"),
        ),
        quirk_inputs.four_axes,
        predictions="probabilities",
        kind="index",
        when=quirk_conditions.last_axis,
    ),
    Quirk(
        "negative_weight",
        (Categorical,),
        'Under divisor="weights" a negative sample weight is an error (NaN under tracing).',
        each("Sample weights may be negative, and so may their sum.", V1, "sklearn."),
        quirk_inputs.negative_weight_of_a_row,
        when=quirk_conditions.averaged_by_weights,
    ),
    Quirk(
        "negative_weight",
        ELEMENTS,
        'Under divisor="weights" a negative sample weight is an error (NaN under tracing).',
        each("Sample weights may be negative, and so may their sum.", V1, "sklearn."),
        quirk_inputs.negative_weight,
        when=quirk_conditions.averaged_by_weights,
    ),
    Quirk(
        "infinite_weight",
        (BinaryCrossEntropyLoss,),
        "An infinite sample weight makes the gradient infinite.",
        each(
            "An infinite sample weight makes the gradient NaN.",
            *keras(BINARY[:1], "tensorflow", "jax"),
            f"{V1}sigmoid",
            f"{V1}log",
        ),
        quirk_inputs.infinite_weight,
        of="gradient",
        when=quirk_conditions.not_averaged_by_weights,
    ),
    Quirk(
        "infinite_weight",
        (MeanSquaredError,),
        "An infinite sample weight makes the mean NaN.",
        each("An infinite sample weight is an error.", "sklearn."),
        quirk_inputs.infinite_weight,
        of="gradient",
    ),
    Quirk(
        "infinite_weight",
        (CrossEntropyLoss,),
        "An infinite sample weight makes the gradient infinite.",
        each(
            "An infinite sample weight makes the gradient NaN.",
            *keras((SPARSE[0], CATEGORICAL[0]), "torch", "jax"),
        ),
        quirk_inputs.infinite_weight_of_a_row,
        predictions="logits",
        of="gradient",
    ),
    Quirk(
        "infinite_weight",
        (CrossEntropyLoss,),
        "An infinite sample weight makes the gradient infinite.",
        each(
            "An infinite sample weight makes the gradient NaN.",
            *keras((SPARSE[0], CATEGORICAL[0]), "torch", "jax"),
            *keras(CATEGORICAL[:1], "tensorflow"),
        )
        | each("An infinite sample weight is an error.", "sklearn."),
        quirk_inputs.infinite_weight_of_a_row,
        predictions="probabilities",
        of="gradient",
    ),
    Quirk(
        "weight_of_ignored",
        (CrossEntropyLoss,),
        "The sample weight of an ignored label is not read.",
        each(
            "0 times NaN is NaN: a sample weight that is NaN makes the loss NaN, also that of an "
            "ignored label.",
            *keras(SPARSE[:1]),
        ),
        quirk_inputs.weight_of_ignored,
        kind="index",
        when=quirk_conditions.ignoring_any,
    ),
    Quirk(
        "label_order",
        (CrossEntropyLoss,),
        "Labels are the numbers of columns.",
        each(
            "Labels stand for columns in their sorted order: 1 and 2, or -1 and 1, are the first "
            "and the second.",
            "sklearn.",
        ),
        quirk_inputs.other_labels,
        predictions="probabilities",
        when=quirk_conditions.of_sklearn,
    ),
    Quirk(
        "binary_probabilities",
        (CrossEntropyLoss,),
        "There is a probability for every class.",
        each("One probability for each example is that of the second of two classes.", "sklearn."),
        quirk_inputs.binary_probabilities,
        predictions="probabilities",
        when=quirk_conditions.of_sklearn,
    ),
    Quirk(
        "one_example",
        (Categorical,),
        "The class axis is where the spec has it, whatever the rank.",
        each(
            "Predictions with one axis are one example, and their axis is that of the classes.",
            *TORCH_CE,
            *TORCH_NLL,
        ),
        quirk_inputs.one_example,
        kind="index",
    ),
    Quirk(
        "number_of_axes",
        (MeanSquaredError,),
        "Predictions may have any number of axes.",
        each("Predictions have one or two axes.", "sklearn."),
        quirk_inputs.many_axes,
        when=quirk_conditions.of_sklearn,
    ),
    Quirk(
        "missing_labels",
        (CrossEntropyLoss,),
        "A batch need not hold every class.",
        {
            "sklearn.metrics.log_loss": "A batch in which not every class occurs is an error, "
            "unless labels says which there are."
        },
        quirk_inputs.few_labels,
    ),
    *DTYPE_QUIRKS,
)
"""All quirks, in the order in which `diff` lists differences."""


def rules_of(spec: Loss, call: Call) -> list[tuple[str, Text]]:
    """The quirks that the loss of a call has: their names, and sentences that say what it does."""
    return [
        (quirk.name, Text.of(quirk.sentence(call)))
        for quirk in QUIRKS
        if quirk.concerns(spec, call) and quirk.has(call)
    ]

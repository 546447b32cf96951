"""Say what the losses of other libraries are that no spec computes.

A kind has patterns of names and a sentence: what it is in the terms of a spec, where that can be
said, and else that it is of another kind. `tests/test_interop_others.py` lists the losses of the
installed libraries, demands that each is read or has a kind, and runs what the sentences say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from unifiedloss.interop.literals import canonical

_ROOTS = ("torch", "keras", "tf", "tensorflow", "optax", "sklearn", "onnx")


@dataclass(frozen=True)
class Kind:
    """Losses of one kind.

    Attributes:
        pattern: matches the last part of their names, in lower case and without underscores.
        sentence: what they are, as the end of "X is ...", without a final period.
        of: the sentences for libraries in which it can be said more exactly, by their root.
        full_name: whether the name must name its library, because a variable may be called so.
        anywhere: whether classes of other packages with such a name are meant as well.
    """

    pattern: str
    sentence: str
    of: Mapping[str, str] = field(default_factory=dict)
    full_name: bool = False
    anywhere: bool = False


_ANOTHER = "another kind of loss, which no spec computes: "

_KL = (
    "the cross-entropy of soft targets less the entropy of the targets, which has no gradient to "
    "the predictions"
)
_LOG_KL = (
    f"{_KL}: ul.NegativeLogLikelihoodLoss({{}}) of its log-probabilities, with floating targets"
)
_LOG1P = "of log1p(predictions) and log1p(targets)"

_KINDS = (
    Kind(
        ".*(score|curve|matrix|display|report|accuracy|correlation|distances|kernels|auc|corrcoef|"
        "support|scorer|scorernames|scoring|ratios|metric|samples|thresholds|measure|chunked)|"
        "pairwisedistancesargmin.*|cluster",
        "no loss: it is a metric, or a tool for metrics",
        full_name=True,
    ),
    Kind(
        "generalizedkl.*|convexkl.*",
        f"{_ANOTHER}the divergence of x log x - x, which adds sum(p) - sum(t) to the KL divergence",
    ),
    Kind(
        "kldiv.*|kld|kldivergence.*|kullback.*",
        _KL,
        {
            "torch": f"{_LOG_KL.format('axis=-1')}. torch's 'mean' divides by all elements, "
            "'batchmean' by the first extent; with log_target=True, take exp of the targets",
            "optax": _LOG_KL.format("axis=-1, reduction='none'")
            + ". Of log targets, take exp before",
            "keras": f"{_KL}: ul.CrossEntropyLoss(axis=-1) of its probabilities, with floating "
            "targets. Keras clips both to 1e-7 from below, which a spec does not",
        },
    ),
    Kind("nllloss2d", "torch.nn.NLLLoss under an old name; write that"),
    Kind(
        "linearcrossentropy.*",
        "torch.nn.CrossEntropyLoss behind a linear layer of its own; apply the layer, and write "
        "the loss of its logits",
    ),
    Kind(
        "adaptivelogsoftmax.*",
        f"{_ANOTHER}a softmax in clusters with weights of its own; its log_prob() are the "
        "predictions of ul.NegativeLogLikelihoodLoss()",
    ),
    Kind(
        "multilabelsoftmargin.*",
        "ul.BinaryCrossEntropyLoss(from_logits=True, average_last_axis=True): it averages the "
        "classes of an example first",
    ),
    Kind(
        "softmargin.*",
        "ul.BinaryCrossEntropyLoss(from_logits=True), with the labels -1 and 1 written as 0 and 1",
    ),
    Kind(
        "rankingsoftmax.*",
        "ul.CrossEntropyLoss(from_logits=True, axis=-1) with floating targets, of any sum",
    ),
    Kind(
        "brierscoreloss",
        "ul.MeanSquaredError() of the probability of the label 1 and the labels 0 "
        "and 1; with more than two classes it is K times ul.MeanSquaredError() of one-hot targets",
    ),
    Kind("l2loss", "ul.MeanSquaredError(reduction='sum', scale=0.5) with the targets 0"),
    Kind(
        "huberloss",
        "ul.HuberLoss(delta=1)",
        {"tf": "ul.HuberLoss(delta=1, dtype='float32', divisor='nonzero', on_empty='zero')"},
    ),
    Kind("rootmeansquarederror", "the square root of ul.MeanSquaredError(), of each output"),
    Kind("rootmeansquaredlogerror", f"the square root of ul.MeanSquaredError() {_LOG1P}"),
    Kind(
        "meansquaredlog.*|msle",
        f"ul.MeanSquaredError() {_LOG1P}",
        {
            "keras": f"ul.MeanSquaredError(average_last_axis=True) {_LOG1P}, after a clip to 1e-7 "
            "from below"
        },
    ),
    Kind(
        "l1loss|meanabsoluteerror|mae|absolutedifference|medianabsoluteerror",
        f"{_ANOTHER}the absolute error. ul.HuberLoss(delta=d, scale=1/d) comes close to it for a "
        "small d",
    ),
    Kind("meanabsolutepercentage.*|mape", f"{_ANOTHER}the absolute error relative to the target"),
    Kind(
        "logcosh", f"{_ANOTHER}log(cosh(e)); ul.HuberLoss() has the same slopes near 0 and far away"
    ),
    Kind("meanpairwise.*", f"{_ANOTHER}the squared error of differences within an example"),
    Kind(
        "gaussiannll.*",
        f"{_ANOTHER}it has a predicted variance. With a constant variance v it is "
        "ul.MeanSquaredError(scale=1/(2*v)) and a constant",
    ),
    Kind(".*poisson.*|.*tweedie.*|.*gammadev.*", f"{_ANOTHER}the likelihood of counts or sizes"),
    Kind(".*pinball.*", f"{_ANOTHER}the error of a quantile"),
    Kind("ctc.*", f"{_ANOTHER}it sums over the alignments of two sequences"),
    Kind(
        "nceloss|sampledsoftmax.*",
        f"{_ANOTHER}an estimate from sampled classes; over all classes it is a cross-entropy",
    ),
    Kind(
        ".*focal.*",
        f"{_ANOTHER}the cross-entropy times a power of 1 - p. With gamma=0 and no alpha it is the "
        "cross-entropy; write that loss",
    ),
    Kind(
        "categoricalgeneralizedcrossentropy",
        f"{_ANOTHER}(1 - p^q) / q. Only for q near 0 it comes close to the cross-entropy",
    ),
    Kind("polyloss.*", f"{_ANOTHER}the cross-entropy plus epsilon (1 - p)"),
    Kind(".*dice.*|tversky", f"{_ANOTHER}the overlap of two regions"),
    Kind(
        ".*hinge.*|.*margin.*|.*perceptron.*|.*sparsemax.*|.*fenchelyoung.*",
        f"{_ANOTHER}it asks for a margin, and takes no likelihood",
    ),
    Kind(
        ".*cosine.*|circle|ntxent|.*triplet.*",
        f"{_ANOTHER}it compares vectors with each other",
    ),
    Kind(
        "hamming.*|zeroone.*|labelranking.*|coverageerror|maxerror",
        f"{_ANOTHER}it counts or ranks mistakes, and has no gradient",
    ),
    Kind(
        "labelsmooth.*",
        "no loss of these libraries. Our label_smoothing spreads eps over all K classes; fairseq "
        "gives eps/(K-1) to each class but the true one, which is label_smoothing=eps*K/(K-1) "
        "here, of ul.CrossEntropyLoss(from_logits=True)",
        anywhere=True,
    ),
    Kind("smoothlabels", "no loss; label_smoothing of a spec smooths the labels"),
    Kind(
        "loss|get|serialize|deserialize|reduction|.*averageloss|addloss|computeweightedloss|"
        "getloss.*|getregularization.*|gettotalloss|scaleregularization.*",
        "no loss: it holds, reduces or collects losses; write the loss itself",
        full_name=True,
    ),
)


def what_it_is(name: str) -> str | None:
    """A sentence about the loss with this dotted name, if it is of a kind that no spec computes.

    The name may be that of a module inside the library, such as "keras.src.losses.losses.Dice".
    None for a name of another package, and for a kind that is not known here.
    """
    # The modules in which scikit-learn and optax define their functions are private.
    name = ".".join(part for part in canonical(name).split(".") if not part.startswith("_"))
    root, _, rest = name.partition(".")
    foreign = rest != "" and root not in _ROOTS
    # TensorFlow's functions have other names inside the library, such as nce_loss_v2.
    last = re.sub(r"_v\d$", "", name.rpartition(".")[2])
    plain = last.lower().replace("_", "")
    for kind in _KINDS:
        if (foreign and not kind.anywhere) or (kind.full_name and not rest):
            continue
        if re.fullmatch(kind.pattern, plain):
            library = {"tensorflow": "tf"}.get(root, root)
            return f"{name} is {kind.of.get(library, kind.sentence)}."
    return None

"""The negative log-likelihood of each position: the cross-entropy reads log-probabilities, too."""

from unifiedloss.losses.cross_entropy.pipeline import positions, weights

__all__ = ["positions", "weights"]

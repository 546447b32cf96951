"""The magnitudes of the negative log-likelihood: those of the cross-entropy."""

from unifiedloss.losses.cross_entropy.magnitude import parts

__all__ = ["parts"]

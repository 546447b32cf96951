"""The closed-form gradient of the negative log-likelihood, for NumPy."""

from unifiedloss.losses.cross_entropy.gradient import SLOPE_UNIT, slopes

__all__ = ["SLOPE_UNIT", "slopes"]

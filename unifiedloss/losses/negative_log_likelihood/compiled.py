"""The compiled loop of the negative log-likelihood: that of the cross-entropy."""

from unifiedloss.losses.cross_entropy.compiled import (
    DTYPES,
    is_soft,
    parameter,
    read,
    room,
    run,
    soft,
    takes,
)

__all__ = ["DTYPES", "is_soft", "parameter", "read", "room", "run", "soft", "takes"]

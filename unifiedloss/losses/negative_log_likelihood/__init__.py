"""The negative log-likelihood."""

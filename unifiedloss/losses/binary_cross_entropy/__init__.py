"""The binary cross-entropy."""

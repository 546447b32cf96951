"""The categorical cross-entropy."""

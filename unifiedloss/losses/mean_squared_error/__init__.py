"""The squared error."""

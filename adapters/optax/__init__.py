"""The losses of optax, for switching.

This is no backend: the adapter that owns the tensors computes the loss.
"""

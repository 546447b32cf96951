"""The losses of optax, for interop.

This is no backend: the adapter that owns the tensors computes the loss.
"""

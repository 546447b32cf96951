"""The losses of scikit-learn, for interop.

This is no backend: the adapter that owns the tensors computes the loss.
"""

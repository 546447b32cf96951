"""The losses of ONNX, for interop.

This is no backend: the adapter that owns the tensors computes the loss.
"""

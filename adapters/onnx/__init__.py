"""The losses of ONNX, for switching.

This is no backend: the adapter that owns the tensors computes the loss.
"""

r"""Exact mode inside a compiled program, for JAX and for XLA in TensorFlow.

It runs the tiers of `unifiedloss.exact.kernel` as array operations. A call is a matrix: a row is a
position with its classes or, for losses without classes, a group of elements. All rows go through
float64 with bounds (`unifiedloss.exact.graph.fast`), in blocks, so that no float64 copy of all rows
exists. Rows with an undecided number are computed again, few at a time: by a host callback where
the caller has one, else in balls (`unifiedloss.exact.graph.formulas`). A number that balls leave
undecided is NaN.
"""

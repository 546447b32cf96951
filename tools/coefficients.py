"""Derive the polynomials of unifiedloss/compiled/vectors.h, and prove what they leave out.

Each polynomial interpolates its function at Chebyshev points, with coefficients rounded to
float64. What it leaves out is a function whose own Chebyshev series is computed to 60 digits; the
sum of the magnitudes of its coefficients bounds it everywhere, because no Chebyshev polynomial
exceeds 1. Run ``python -m tools.coefficients``.
"""

from __future__ import annotations

from decimal import getcontext

getcontext().prec = 70

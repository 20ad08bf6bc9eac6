"""Least squares that says how good it is.

Solvers and what they return. Knows no network, no gradient and no image: whatever says which
equations are solved stands in `rconv.equations`.
"""

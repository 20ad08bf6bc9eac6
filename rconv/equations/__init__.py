"""What is linear in a convolution's input.

Gradient constraints, weight constraints, and both stacked. How they are solved is in
`rconv.linalg`, when they are used in `rconv.attack`.
"""

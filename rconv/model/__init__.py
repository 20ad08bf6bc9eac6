"""How a model is read.

Activations seen from their output, shapes and linear algebra of one convolution, and the reading
of a PyTorch module into them. What a client computes with a model is in `rconv.observe`.
"""

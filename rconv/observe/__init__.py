"""What a client computes and sends.

Gradients of one step, or the weights after it; what is known of their errors, the checks before
they are used, and the files in which they travel. Nothing here reconstructs.
"""

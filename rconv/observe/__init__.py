"""What a client computes and sends.

Gradients of one step, what is known of their errors, the checks before they are used, and the
files in which they travel. Nothing here reconstructs.
"""

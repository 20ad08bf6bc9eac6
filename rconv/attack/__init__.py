"""From gradients back to the image, layer by layer; `attack` is read first.

Receives what an attacker has, the model and the gradients. The truth, and everything that
compares with it, is in `rconv.lab`.
"""

"""Images to attack: the paper's datasets, and two that need no network.

Knows neither models nor attacks.
"""

"""Experiments: known images, seeded networks, clients, attacks, and the truth as the judge.

The only wing besides `rconv.show` that sees original and reconstruction together.
"""

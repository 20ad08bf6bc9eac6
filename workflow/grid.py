"""What a file in `workflow/grids` means: the points of each notebook, and their parameters.

For each notebook, every dataset goes through every architecture, and `pairs` adds single points,
named like their files. The values at each level become parameters of the notebook, each level
adding to the one before: all, then the dataset's, then the architecture's, then the pair's.
"""

from itertools import product


def points(grid):
    """Names of a notebook's points, "dataset-architecture", in the order of the file."""
    whole = product(grid.get("datasets", {}), grid.get("architectures", {}))
    return list(dict.fromkeys(["-".join(pair) for pair in whole] + list(grid.get("pairs", {}))))


def parameters(grid, dataset, architecture):
    """The notebook's parameters at one point."""
    return {
        "dataset": dataset,
        "architecture": architecture,
        **grid.get("all", {}),
        **grid.get("datasets", {}).get(dataset, {}),
        **grid.get("architectures", {}).get(architecture, {}),
        **grid.get("pairs", {}).get(f"{dataset}-{architecture}", {}),
    }

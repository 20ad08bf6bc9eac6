"""The attacks that R-CONV is compared with, small and faithful, with their published settings.

Each is called as ``<module>.attack(model, gradients, input_shape, ...)``, receives what an
attacker has and nothing else, and returns a `BaselineResult`: `dlg` (and iDLG, an option of it),
`inverting_gradients` and `rgap`. `rank_analysis` counts as R-GAP counts.
"""

from rconv.baselines import dlg, inverting_gradients, rgap
from rconv.baselines.matching import BaselineResult, infer_labels
from rconv.baselines.rank_analysis import Count, rank_analysis

__all__ = [
    "BaselineResult",
    "Count",
    "dlg",
    "infer_labels",
    "inverting_gradients",
    "rank_analysis",
    "rgap",
]

"""The attacks that R-CONV is compared with, small and faithful, with their published settings.

Each is called as ``<module>.attack(model, gradients, input_shape, ...)``, receives what an
attacker has and nothing else, and returns a `BaselineResult`: `dlg` (and iDLG, an option of it),
`inverting_gradients` and `rgap`. `rank_analysis` counts as R-GAP counts.

The model must be twice differentiable, and its device is used. Gradients map parameter names to
gradients, shaped as the parameter or with a leading axis N; their dtype is that of the computation,
float32 in the originals. `input_shape` is (C, H, W) of one image, `lr` the length of a step, and
`watch` is called after each iteration with the image and its objective. ValueError if these do not
fit together.
"""

from rconv.lazy import TYPE_CHECKING, lazy

if TYPE_CHECKING:
    from rconv.baselines import dlg, inverting_gradients, rgap
    from rconv.baselines.matching import BaselineResult, infer_labels
    from rconv.baselines.rgap import Count, rank_analysis

__getattr__, __dir__ = lazy(__name__)

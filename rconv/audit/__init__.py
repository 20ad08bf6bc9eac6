"""Does an architecture leak? The attack's own plan, asked with random data in place of a client's.

Nothing here sees images or gradients; to try the attack on images is `rconv.lab.trial`.
"""

from rconv.lazy import TYPE_CHECKING, lazy

if TYPE_CHECKING:
    from rconv.audit.batches import BatchLimit, batch_limits, weakest
    from rconv.audit.change import Change, Findings, examine
    from rconv.audit.layers import (
        EMBEDDING,
        GRADIENT,
        HYBRID,
        NOT_UNIQUE,
        SPAN,
        TOO_LARGE,
        WEIGHT,
        LayerAudit,
        audit,
        overall,
    )
    from rconv.audit.ranks import class_bound, filters_needed, gradient_rank
    from rconv.audit.widths import Width

__getattr__, __dir__ = lazy(__name__)

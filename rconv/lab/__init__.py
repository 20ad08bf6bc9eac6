"""Experiments: known images, seeded networks, clients, attacks, and scores against the originals.

Only this subpackage and `rconv.show` see original and reconstruction together.
"""

from rconv.lazy import TYPE_CHECKING, lazy

if TYPE_CHECKING:
    from rconv.lab import (
        architectures,
        channels,
        comparison,
        defences,
        federated,
        methods,
        metrics,
        protection,
        published,
        row_by_row,
        success_rates,
        underdetermined,
    )
    from rconv.lab.experiment import client_gradients, run, shared_model
    from rconv.lab.false_positives import attack_random_networks
    from rconv.lab.masked import masked_attack, masked_head
    from rconv.lab.records import SUCCESS, score, value, won
    from rconv.lab.training import train
    from rconv.lab.trial import trial as run_trial

__getattr__, __dir__ = lazy(__name__)

"""An optimisation strategy for LeakPro's modular gradient inversion, with the certificate.

LeakPro's release on PyPI is an empty placeholder: install it as its own README says, from its
repository, in an environment of its own, and rconv beside it. Tried against commit c47752f
(30 June 2026).

.. code-block:: python

    strategy = RConvStrategy()
    orchestrator = ModularGIAOrchestrator(threat_model, RandomNoiseInitialization(), strategy)
    images, config = orchestrator.run_attack(model, observations, device)
    print(strategy.result.unique, strategy.result.gradient_residual)

The initial images are ignored: nothing is optimised.
"""

from importlib import import_module
from typing import Any

import torch
from torch import nn

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction
from rconv.observe.check import normalised_range

BASE = "leakpro.attacks.gia_attacks.modular.core.component_base"


class RConvStrategy:
    """Computes the images in closed form, where LeakPro takes an `OptimizationStrategy`.

    Parameters
    ----------
    **options
        Of `rconv.Attack`.
    """

    def __init__(self, **options: Any):
        self.options = options
        self.result: Reconstruction | None = None

    @classmethod
    def get_metadata(cls) -> Any:
        """What LeakPro's threat models check: gradients are enough."""
        text = "Closed-form reconstruction, layer by layer (R-CONV)"
        return import_module(BASE).ComponentMetadata(
            "rconv", "R-CONV", text, {}, "Eltaras et al., WISE 2024"
        )

    def optimize(
        self,
        reconstruction: torch.Tensor,
        labels: Any,
        target_model: nn.Module,
        client_observations: Any,
        proxy_dataloader: Any = None,
    ) -> Any:
        """Reconstruct the images behind a client's gradients.

        Of `reconstruction`, (N, C, H, W), only shape, dtype and device matter; labels and proxy
        data are not used. In the state, `loss` is the relative gradient residual, `converged`
        whether every image is unique; `metrics` has both for each image, and the reason where one
        is not.

        Raises
        ------
        ValueError
            Several epochs, or updates in place of gradients; UnsupportedModelError where the
            attack cannot pass a layer.
        """
        seen, options = client_observations, dict(self.options)
        settings, model = seen.training_settings, target_model.eval()
        if settings is not None:
            if settings.epochs != 1 or settings.compute_mode != "gradients":
                raise ValueError("rconv attacks gradients of one step: epochs=1, compute_mode="
                                 "'gradients'")  # fmt: skip
            model = target_model.train(settings.model_mode == "train")
        if seen.data_mean is not None:
            options.setdefault("value_range", normalised_range(seen.data_mean, seen.data_std))
        names = list(dict(model.named_parameters()))
        sent = seen.gradients
        gradients = {
            n: sent[n if isinstance(sent, dict) else i].detach() for i, n in enumerate(names)
        }
        attack = Attack(model, tuple(reconstruction.shape[-3:]), **options)
        self.result = found = attack(gradients, batch=reconstruction.shape[0])
        metrics = {"unique": found.unique.tolist(), "reason": list(found.diagnostics),
                   "gradient_residual": found.gradient_residual.tolist()}  # fmt: skip
        return import_module(BASE).OptimizationState(
            found.images.to(reconstruction), found.labels, 1, float(found.gradient_residual.max()),
            metrics, bool(found.unique.all()),
        )  # fmt: skip

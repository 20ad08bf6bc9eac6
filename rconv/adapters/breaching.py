"""An attacker for breaching: the same call as its own attacks, `reconstruct`.

breaching pins old versions of its dependencies; an environment of its own is made by

.. code-block:: bash

    python -m venv .venv-breaching
    .venv-breaching/bin/pip install rconv torchvision
    .venv-breaching/bin/pip install --no-deps breaching
    .venv-breaching/bin/pip install hydra-core torchmetrics

.. code-block:: python

    user, server, model, loss = breaching.cases.construct_case(cfg.case, setup)
    attacker = Attacker(server.model, server.loss)
    shared, payloads, truth = server.run_protocol(user)
    reconstructed, stats = attacker.reconstruct(payloads, shared)

This module needs nothing of breaching itself: payloads and shared data are dictionaries.
"""

import copy
from typing import Any

import torch
from torch import nn

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction
from rconv.observe.check import normalised_range


class Attacker:
    """Reconstructs what one user shared in one step.

    Parameters
    ----------
    model : Module
        The template; parameters and buffers come with the server's payload.
    loss_fn : object
        Of the user; cross-entropy is recognised, of others nothing is assumed.
    **options
        Of `rconv.Attack`.
    """

    def __init__(self, model: nn.Module, loss_fn: Any = None, **options: Any):
        self.model, self.options = copy.deepcopy(model), options
        names = (type(loss_fn).__name__, type(getattr(loss_fn, "loss_fn", None)).__name__)
        if any("CrossEntropy" in name for name in names):
            self.options.setdefault("loss", "cross-entropy")
        self.result: Reconstruction | None = None

    def reconstruct(
        self,
        server_payload: list[dict],
        shared_data: list[dict],
        server_secrets: Any = None,
        dryrun: bool = False,
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Reconstruct a user's images, as breaching's attackers do.

        Returns
        -------
        dict
            "data", (N, C, H, W), normalised as the user's, and "labels", (N,).
        dict
            Of each image "unique", "gradient_residual", "expected_error" and "reason".

        Raises
        ------
        ValueError
            Several queries, or an update of several local steps; UnsupportedModelError where the
            attack cannot pass a layer.
        """
        if len(server_payload) != 1 or shared_data[0]["metadata"].get("local_hyperparams"):
            raise ValueError("rconv attacks the gradients of one step: one query, user_type "
                             "local_gradient")  # fmt: skip
        payload, shared = server_payload[0], shared_data[0]
        data, model = payload["metadata"], copy.deepcopy(self.model)
        buffers = payload["buffers"] if shared["buffers"] is None else shared["buffers"]
        with torch.no_grad():
            for own, sent in zip(model.parameters(), payload["parameters"], strict=True):
                own.copy_(sent)
            for own, sent in zip(model.buffers(), buffers or [], strict=buffers is not None):
                own.copy_(sent)
        model.train(payload["buffers"] is None)
        if type(model).__name__ == "VisionContainer":  # takes the labels as well
            model = model.model
        options = dict(self.options)
        if hasattr(data, "mean"):
            options.setdefault("value_range", normalised_range(data.mean, data.std))
        gradients = dict(zip(dict(model.named_parameters()), shared["gradients"], strict=True))
        batch = shared["metadata"]["num_data_points"]
        self.result = found = Attack(model, tuple(data.shape), **options)(gradients, batch=batch)
        images = found.images.to(shared["gradients"][0])
        stats = {name: getattr(found, name).tolist()
                 for name in ("unique", "gradient_residual", "expected_error")}  # fmt: skip
        stats["reason"] = list(found.diagnostics)
        return {"data": images, "labels": found.labels}, stats

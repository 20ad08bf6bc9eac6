"""A Flower strategy that audits what the server receives, client by client.

.. code-block:: python

    strategy = Audited(FedAvg(), Net(), (1, 32, 32), learning_rate=0.01)
    # … and after the rounds:
    for finding in strategy.findings:
        print(finding.round, finding.client, finding.unique, finding.reason)

Training is as before. Clients make one step of plain SGD and send the new weights in the order of
the model's state_dict, as in Flower's PyTorch examples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rconv.attack.attack import Attack
from rconv.attack.report import Reconstruction
from rconv.extras import extra
from rconv.observe.update import gradients_from_update

if TYPE_CHECKING:
    from flwr.common import Parameters
    from flwr.server.strategy import Strategy


@dataclass(frozen=True)
class Finding:
    """What the server could compute from one client's weights; `result` is None if it was refused.

    `reason` says why it was, or why the images are not unique.
    """

    round: int
    client: str
    result: Reconstruction | None
    reason: str

    @property
    def unique(self) -> bool:
        """Whether each image is the only possible one."""
        return self.result is not None and bool(self.result.unique.all())


class Audited:
    """A strategy that does what another one does, and attacks what the clients send.

    `learning_rate` and `batch` are those of the clients' step; a batch of None is read from the
    update. `on_finding` is called with each `Finding`; all are kept in `findings`.
    """

    def __init__(
        self,
        strategy: "Strategy",
        model: torch.nn.Module,
        input_shape: tuple[int, int, int],
        learning_rate: float,
        batch: int | None = 1,
        on_finding: Callable[[Finding], Any] = lambda finding: None,
    ):
        self.strategy, self.model, self.input_shape = strategy, model, input_shape
        self.learning_rate, self.batch, self.on_finding = learning_rate, batch, on_finding
        self.findings: list[Finding] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["strategy"], name)

    def configure_fit(self, server_round: int, parameters: "Parameters", *rest: Any) -> list:
        """As the strategy; keeps the weights that the round starts from."""
        self._before = parameters
        return self.strategy.configure_fit(server_round, parameters, *rest)

    def aggregate_fit(self, server_round: int, results: list, failures: list) -> tuple:
        """As the strategy, after the attack on each client's weights."""
        for proxy, answer in results:
            found, reason = None, ""
            try:
                found = self._attacked(answer.parameters)
                reason = "; ".join(dict.fromkeys(filter(None, found.diagnostics)))
            except ValueError as error:  # also a model that is not supported
                reason = str(error)
            self.findings.append(Finding(server_round, proxy.cid, found, reason))
            self.on_finding(self.findings[-1])
        return self.strategy.aggregate_fit(server_round, results, failures)

    def _attacked(self, sent: "Parameters") -> Reconstruction:
        with extra():
            from flwr.common import parameters_to_ndarrays
        before, after = (
            dict(zip(self.model.state_dict(), map(torch.tensor, parameters_to_ndarrays(own)),
                     strict=True))
            for own in (self._before, sent)
        )  # fmt: skip
        self.model.load_state_dict(before)
        gradients, noise = gradients_from_update(before, after, self.learning_rate)
        attack = Attack(self.model, self.input_shape)
        return attack(gradients, noise=noise, batch=self.batch, buffers=after)

"""A server of federated averaging that keeps what passes through its hands: Flower, nothing else.

    python server.py ADDRESS FOLDER CLIENTS PLAN

The folder has `weights.npz`, those to start from. The plan, in JSON, lists what each round
prescribes: learning rate, steps, and images of a client. Each round leaves `ROUND.npz`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerConfig, start_server
from flwr.server.strategy import FedAvg


class Curious(FedAvg):
    """Federated averaging to the letter. No client can notice what this server keeps."""

    folder: Path
    kept: dict

    def configure_fit(self, server_round, parameters, client_manager):
        self.kept = {"before": parameters}
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round, results, failures):
        if failures:
            raise RuntimeError(f"a client failed in round {server_round}: {failures[0]}")
        average, metrics = super().aggregate_fit(server_round, results, failures)
        self.kept |= {answer.metrics["client"]: answer.parameters for _, answer in results}
        self.kept["average"] = average
        arrays = {
            f"{whose} {place}": weight
            for whose, parameters in self.kept.items()
            for place, weight in enumerate(parameters_to_ndarrays(parameters))
        }
        np.savez(self.folder / f"{server_round}.npz", **arrays)
        return average, metrics


if __name__ == "__main__":
    address, folder, clients, plan = sys.argv[1:]
    rounds = json.loads(plan)
    strategy = Curious(
        fraction_evaluate=0.0,
        min_fit_clients=int(clients),
        min_available_clients=int(clients),
        on_fit_config_fn=lambda number: rounds[number - 1],
        initial_parameters=ndarrays_to_parameters(np.load(Path(folder, "weights.npz")).values()),
    )
    strategy.folder = Path(folder)
    config = ServerConfig(num_rounds=len(rounds), round_timeout=60)
    start_server(server_address=address, config=config, strategy=strategy)

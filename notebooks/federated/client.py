"""A client of federated learning: PyTorch and Flower, nothing else.

    python client.py ADDRESS IMAGES.npz

The file has `images`, float32 of axes (image, channel, row, column), and their `labels`. The
client sends its file's name and new weights; its images stay.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from flwr.client import NumPyClient, start_client
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    """Four convolutions and a linear layer, for grey images of 32 × 32."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5, stride=2, padding=2)
        self.conv3 = nn.Conv2d(16, 12, 5, padding=2)
        self.conv4 = nn.Conv2d(12, 6, 5, padding=2)
        self.classes = nn.Linear(6 * 8 * 8, 10)

    def forward(self, x):
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = functional.leaky_relu(conv(x), 0.2)
        return self.classes(x.flatten(1))


def sgd_step(net, loss, rate):
    """One step of plain SGD, without `torch.optim`, which takes longer to load than a round."""
    parameters = list(net.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.data.sub_(gradient, alpha=rate)


class Client(NumPyClient):
    """Each round it learns from the next of its images."""

    def __init__(self, path):
        file = np.load(path)
        self.name = Path(path).stem
        self.images = torch.from_numpy(file["images"])
        self.labels = torch.from_numpy(file["labels"])
        self.net = Net()

    def fit(self, parameters, config):
        """Start from the server's weights, step as it prescribes, return the new weights."""
        names = self.net.state_dict()
        weights = dict(zip(names, map(torch.tensor, parameters), strict=True))
        self.net.load_state_dict(weights)
        count = config["images"]
        images, labels = self.images[:count], self.labels[:count]
        for _ in range(config["steps"]):
            sgd_step(self.net, functional.cross_entropy(self.net(images), labels), config["rate"])
        self.images, self.labels = self.images.roll(-count, 0), self.labels.roll(-count, 0)
        new = [weight.numpy() for weight in self.net.state_dict().values()]
        return new, count, {"client": self.name}


if __name__ == "__main__":
    address, path = sys.argv[1:]
    torch.set_num_threads(1)
    start_client(server_address=address, client=Client(path).to_client(), max_wait_time=60)

"""Make the certificate of the README: a digits classifier 64-32-32-10, its weights, and its Lipschitz certificate.

``python docs/certificate/make.py`` trains for a second (torch, scikit-learn) and writes weights.npz and
lipschitz.certificate beside this file; check.py proves the certificate with numpy alone.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import certbound

HERE = Path(__file__).parent


def trained() -> list[np.ndarray]:
    """The float32 weights, first layer first (biases do not matter for a Lipschitz constant)."""
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    data, labels = torch.tensor(x / 16.0).float(), torch.tensor(y)
    layers = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.3)
    for _ in range(20):
        for batch in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data[batch]), labels[batch]).backward()
            optimizer.step()
    return [layer.weight.detach().numpy() for layer in layers if isinstance(layer, nn.Linear)]


if __name__ == "__main__":
    weights = trained()
    np.savez(HERE / "weights.npz", *weights)
    result = certbound.lipschitz_sdp(weights, norm=2, method="barrier")
    result.certificate.save(HERE / "lipschitz.certificate")

"""A feature distance for MNIST samples, on a small classifier trained here. It is not FID and never called so."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.nvae.losses import binarise
from shared.data.batches import batch_indices, seed_step
from shared.metrics import feature_statistics, frechet_distance

FEATURES = 64


class Classifier(nn.Module):
    """Two strided convolutions and 64 features before the ten classes; binary images (B, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, 2, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FeatureScore:
    """The trained classifier and the feature statistics of the reference images."""

    classifier: Classifier
    accuracy: float  # of the classifier on binarised test images
    mean: Tensor
    covariance: Tensor

    def distance(self, probabilities: Tensor, seed: int) -> float:
        """Fréchet distance of binary draws from `probabilities` (N, 1, 28, 28) to the reference."""
        seed_step(seed, 0)
        features = extract(self.classifier, binarise(probabilities, torch.rand(probabilities.shape)))
        return frechet_distance(*feature_statistics(features), self.mean, self.covariance)


def train_classifier(pixels: Tensor, labels: Tensor, steps: int, seed: int = 0) -> Classifier:
    """Adam on cross-entropy over `steps` batches of 200 freshly binarised images."""
    seed_step(seed, -1)
    classifier = Classifier()
    optimizer = torch.optim.Adam(classifier.parameters(), 2e-3)
    batch = min(200, len(pixels))
    for k in range(steps):
        seed_step(seed, k)
        index = batch_indices(len(pixels), batch, seed, k)
        x = binarise(pixels[index], torch.rand(pixels[index].shape))
        loss = F.cross_entropy(classifier(x), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier.eval()


@torch.inference_mode()
def extract(classifier: Classifier, x: Tensor) -> Tensor:
    """Features (N, 64) of binary images."""
    return torch.cat([classifier.features(part) for part in x.split(1000)])


@torch.inference_mode()
def feature_score(classifier: Classifier, pixels: Tensor, labels: Tensor, seed: int = 0) -> FeatureScore:
    """Statistics of the reference images (N, 1, 28, 28) and the classifier's accuracy on them."""
    seed_step(seed, -2)
    x = binarise(pixels, torch.rand(pixels.shape))
    logits = torch.cat([classifier(part) for part in x.split(1000)])
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return FeatureScore(classifier, accuracy, *feature_statistics(extract(classifier, x)))

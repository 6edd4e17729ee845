"""Examples that small classifiers tell apart: noise around the label."""

import torch

from wsgraph.data import ClassificationData


def blobs(count: int = 60, side: int = 5) -> ClassificationData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randn(count, 1, side, side, generator=generator) + labels[:, None, None, None]
    return ClassificationData(images[:40], labels[:40], images[40:], labels[40:])


BLOBS = blobs()

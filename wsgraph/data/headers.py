"""What the headers of files of a zoo say."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["SHARD_FORMAT", "SPACE_KEY", "checksum_of", "read_header"]

SHARD_FORMAT = "wsgraph.shard"
SPACE_KEY = re.compile(r"[0-9a-f]{16}")


def checksum_of(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the contents, however they are divided."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_header(tensors: Any) -> dict[str, Any]:
    """What an open file of a shard says of itself."""
    # One text rather than an entry for each field, whose order in the file would differ from write to write.
    header: dict[str, Any] = json.loads((tensors.metadata() or {}).get(SHARD_FORMAT, "{}"))
    return header

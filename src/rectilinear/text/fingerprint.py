"""One way to say that two sets of tensors are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def fingerprint(parts: Iterable[Tensor | str]) -> str:
    """SHA-256 of the bytes of tensors (row-major, little-endian) and strings (UTF-8), in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else _bytes_of(part))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()

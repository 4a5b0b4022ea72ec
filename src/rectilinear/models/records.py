"""What result files say of a model that is in memory, and of the rows that it is run on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

import rectilinear
from rectilinear.models.capture import device_of
from rectilinear.models.describe import count_parameters, weights_sha256
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.load import commit_of
from rectilinear.models.origin import Origin
from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord
from rectilinear.text.rows import TokenRows
from rectilinear.text.sources import name_source


def record_model(module: nn.Module, origin: Origin, stack: BlockStack | None, width: int | None) -> ModelRecord:
    """Describe a model that was loaded from ``origin``; reads all of its weights, for their hash."""
    commit = None if isinstance(origin.model, nn.Module) else commit_of(origin.model, origin.loading.revision)
    return ModelRecord(
        id=origin.name or type(module).__name__,
        revision=commit or origin.loading.revision,
        architecture=type(module).__name__,
        num_blocks=None if stack is None else len(stack),
        width=width,
        parameters=count_parameters([module]),
        sha256=weights_sha256(module),
    )


def record_rows(source: Any, rows: TokenRows) -> DataRecord:
    """Describe the rows of a text source."""
    return DataRecord(
        source=name_source(source),
        fingerprint=rows.fingerprint,
        tokens=rows.ids.numel(),
        rows=len(rows.ids),
        seq_len=rows.ids.shape[1],
    )


def record_environment(module: nn.Module) -> EnvironmentRecord:
    """Describe the software, and where the model is and in which precision."""
    try:
        transformers: str | None = version("transformers")
    except PackageNotFoundError:
        transformers = None
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())
    return EnvironmentRecord(
        rectilinear=rectilinear.__version__,
        torch=torch.__version__,
        transformers=transformers,
        device=str(device_of(module)),
        dtype=str(dtype).removeprefix("torch."),
    )

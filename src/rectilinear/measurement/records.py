"""What every result file says of the model, the data and the software it came from."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

import rectilinear
from rectilinear.models.blocks import BlockStack
from rectilinear.models.capture import device_of
from rectilinear.models.load import count_parameters, weights_sha256
from rectilinear.models.origin import Origin


class Record(BaseModel):
    """Base of everything that is written as JSON."""

    # Later files of the same schema may have more keys.
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class ModelRecord(Record):
    """Which model was measured."""

    id: str
    revision: str | None
    architecture: str
    num_blocks: int
    width: int
    parameters: int
    sha256: str = Field(description="of the weights as loaded: names, dtypes, shapes and bytes")


class DataRecord(Record):
    """Which tokens it was measured on."""

    source: str
    fingerprint: str = Field(description="SHA-256 of the inputs")
    tokens: int
    rows: int
    seq_len: int | None


class EnvironmentRecord(Record):
    """Which software and hardware measured it."""

    rectilinear: str
    torch: str
    transformers: str | None
    device: str
    dtype: str


def record_model(module: nn.Module, origin: Origin, stack: BlockStack, width: int) -> ModelRecord:
    """Describe a model that was loaded from ``origin``; reads all of its weights, for their hash."""
    commit = getattr(getattr(module, "config", None), "_commit_hash", None)
    return ModelRecord(
        id=origin.name or type(module).__name__,
        revision=commit or origin.revision,
        architecture=type(module).__name__,
        num_blocks=len(stack),
        width=width,
        parameters=count_parameters([module]),
        sha256=weights_sha256(module),
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

"""How a model is loaded, and where its blocks are."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from rectilinear.settings import DType, Settings


class Stack(Settings):
    """Where a model's blocks are."""

    blocks: str | None = None
    """Path of the block stack, such as model.layers, or encoder or decoder; found by structure when not given."""


class Named(Settings):
    """Where the blocks are that are named by their indices."""

    stack: str | None = Field(None, description=Stack.model_fields["blocks"].description)


class Access(Settings):
    """Which version of a model on the Hub, and whether its code may run."""

    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    trust_remote_code: bool = False
    """Run modelling code that comes with the checkpoint."""


class Placement(Settings):
    """Where a model runs, and in which precision."""

    device: str = "auto"
    """Device to run on: auto, cpu, cuda:0, mps."""
    dtype: DType = "auto"
    """Precision of the weights; 'auto' is the checkpoint's own."""


class Loading(Placement, Access):
    """How a model is loaded; see `rectilinear.models.load`."""

    stream: Annotated[bool | None, Parameter(negative="--no-stream")] = None
    """Leave the weights of blocks on disk until they run, and take all rows through one block after the other; when not
    given, for a model that does not fit in memory."""


class Upload(Settings):
    """Where a checkpoint is uploaded to."""

    push_to_hub: str | None = None
    """Hub id to upload the checkpoint to, once it is written."""
    private: bool = False
    """Make that repository a private one, where it is new."""

"""What every result file says of the model, the data and the software it came from."""

from __future__ import annotations

import json
import os
import reprlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

import rectilinear
from rectilinear.errors import RequestError
from rectilinear.models.blocks import BlockStack
from rectilinear.models.capture import device_of
from rectilinear.models.load import commit_of, count_parameters, weights_sha256
from rectilinear.models.origin import Origin

if TYPE_CHECKING:
    from typing_extensions import Self


class Record(BaseModel):
    """Base of everything that is written as JSON."""

    # Later files of the same schema may have more keys.
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class ResultFile(Record):
    """Base of a result that is a file of its own, ``file_name`` in a folder."""

    file_name: ClassVar[str]

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, allow_nan=False) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Write the file into a folder, which is made where it is missing, whole or not at all; return its path."""
        path = Path(folder) / self.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            scratch.write_text(self.to_json(), encoding="utf-8")
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read such a file, or the one in a folder.

        Raises:
            RequestError: there is none, or it is something else.
        """
        kind = cls.__name__.lower()
        file = Path(path) / cls.file_name if Path(path).is_dir() else Path(path)
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"no {kind} at {file}: {error.strerror}") from None
        except ValidationError as error:
            raise RequestError(f"{file}: expected a rectilinear {kind} ({first_reason(error)})") from None
        except ValueError as error:  # not even text
            raise RequestError(f"{file}: expected a rectilinear {kind} ({error})") from None


def first_reason(error: ValidationError) -> str:
    """The first thing that is wrong, in one line: where it is, what is allowed there, what was found."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    # Of a whole entry, what is wrong with it is said already.
    got = "" if isinstance(first["input"], dict) else f", got {reprlib.repr(first['input'])}"
    said = f"{first['msg'].removeprefix('Value error, ')}{got}"
    return f"{where}: {said}" if where else said


class ModelRecord(Record):
    """Which model it is about."""

    id: str
    revision: str | None
    architecture: str
    num_blocks: int | None = Field(description="null where there is no block stack to be found")
    width: int | None
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


def record_model(module: nn.Module, origin: Origin, stack: BlockStack | None, width: int | None) -> ModelRecord:
    """Describe a model that was loaded from ``origin``; reads all of its weights, for their hash."""
    commit = None if isinstance(origin.model, nn.Module) else commit_of(origin.model, origin.revision)
    return ModelRecord(
        id=origin.name or type(module).__name__,
        revision=commit or origin.revision,
        architecture=type(module).__name__,
        num_blocks=None if stack is None else len(stack),
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

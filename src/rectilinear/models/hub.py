"""Uploading a checkpoint to the Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectilinear.errors import JobError, RequestError, first_line
from rectilinear.models.settings import Upload

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd


def check_upload(upload: Upload) -> None:
    """Refuse an upload that cannot be, before there is anything to upload.

    Raises:
        RequestError: no such id, nobody is logged in, or the Hub is not to be had.
    """
    if upload.push_to_hub is None:
        upload.refuse_unused("without `push_to_hub`", "private")
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(upload.push_to_hub)
        HfApi().whoami()
    except HFValidationError as error:
        raise RequestError(
            f"expected `push_to_hub=OWNER/NAME`, got {upload.push_to_hub!r}: {first_line(error)}"
        ) from error
    except Exception as error:  # no token, one that is not known, offline, no network: all of other classes
        raise RequestError(
            f"expected to be logged in at the Hub for `push_to_hub`, got {type(error).__name__}: {first_line(error)}; "
            "try `hf auth login` or HF_TOKEN"
        ) from None


def of_seed(upload: Upload, seed: int) -> Upload:
    """Where the model of one of several seeds goes."""
    place = upload.push_to_hub
    return upload if place is None else upload.model_copy(update={"push_to_hub": f"{place}-seed-{seed}"})


def push(folder: Path, upload: Upload) -> str | None:
    """Upload the files of a checkpoint in one commit; names of models and texts in its records lose their folders.

    Returns:
        Where it is; None where nothing was asked for.

    Raises:
        JobError: it could not be uploaded; the files are where they were.
    """
    if upload.push_to_hub is None:
        return None
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        where = hub.create_repo(upload.push_to_hub, private=upload.private or None, exist_ok=True)
        hub.create_commit(where.repo_id, [*_files(folder)], commit_message="Upload a checkpoint of rectilinear")
    except Exception as error:  # whatever a network can do
        raise JobError(
            f"could not upload to {upload.push_to_hub}: {type(error).__name__}: {first_line(error)}; the checkpoint is "
            f"in {folder}, try `hf upload {upload.push_to_hub} {folder}`"
        ) from error
    return str(where)


def _files(folder: Path) -> Iterator[CommitOperationAdd]:
    """Those of a checkpoint, without what training keeps to go on from."""
    from huggingface_hub import CommitOperationAdd

    for file in sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")):
        content: Any = file
        if file.suffix == ".json" and "schema" in (found := json.loads(file.read_text(encoding="utf-8"))):
            content = (json.dumps(_without_folders(found), indent=2) + "\n").encode()
        yield CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=content)


def _without_folders(value: Any) -> Any:
    from rectilinear.models.card_metadata import bare_name

    if isinstance(value, dict):
        return {name: _without_folders(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    is_path = isinstance(value, str) and os.sep in value and (Path(value).is_absolute() or Path(value).exists())
    return bare_name(value) if is_path else value

"""What extras of this package bring."""

from __future__ import annotations

from importlib.util import find_spec

from rectilinear.errors import RequestError


def require(module: str, extra: str) -> None:
    """Say how to install what an extra of this package brings.

    Raises:
        RequestError: it is not installed.
    """
    if find_spec(module) is None:
        raise RequestError(f"expected {module} to be installed; try pip install 'rectilinear[{extra}]'")

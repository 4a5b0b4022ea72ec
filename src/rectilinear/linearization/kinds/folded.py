"""The kind `Folded`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rectilinear.linearization.kinds.base import Kind
from rectilinear.settings import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rectilinear.linearization.fit import Fit, Site
    from rectilinear.models.capture import Passage
    from rectilinear.models.find_blocks import BlockStack

_WHOLE = "folding takes whole blocks out; try `target=block`"


class Folded(Kind):
    """A map that is multiplied into the last projection of the block before (ReplaceMe, arXiv 2505.02819)."""

    name: ClassVar[str] = "folded"
    impossible: ClassVar[Mapping[Target, str]] = {"attention": _WHOLE, "mlp": _WHOLE}
    removes_blocks: ClassVar[bool] = True
    needs_block_before: ClassVar[bool] = True

    bias: bool = False
    """Give the projection that a map is folded into a bias, where the configuration has a place for one: others that
    get one by it have zeros."""

    def check_model(self, model: nn.Module, stack: BlockStack, index: int) -> None:
        """The block before needs a projection that adds to the residual stream as it is, perhaps room for a bias."""
        import torch

        from rectilinear.models.surgery import find_projection

        path = find_projection(model, stack, index - 1, torch.zeros(1, 4, dtype=torch.long))
        self._new_biases(model, path)

    def comes_along(self, model: nn.Module, stack: BlockStack) -> Mapping[str, int]:
        """The biases of all layers that get one."""
        import torch

        from rectilinear.models.surgery import find_projection

        return self._new_biases(model, find_projection(model, stack, 0, torch.zeros(1, 4, dtype=torch.long)))

    def _new_biases(self, model: Any, path: str) -> Mapping[str, int]:
        """How many numbers the biases are that come with one of the projection, by the layer."""
        from rectilinear.models.biases import find_biases

        if not self.bias or getattr(model.get_submodule(path), "bias", None) is not None:
            return {}
        return {name: layer.out_features for name, layer in find_biases(model, path)[1].items()}

    def features(self, width: int, target: Target) -> int:
        """What the projection gives."""
        return width

    def fit(self, site: Site) -> Fit:
        """Least squares of the stream after the removed blocks on the projection's output."""
        from rectilinear.linearization.fit import Fit
        from rectilinear.models.surgery import find_projection, folded_projection

        bench, before = site.bench, site.blocks[0] - 1
        with site.trying():
            path = find_projection(bench.model, bench.stack, before, bench.one_row)
        projection = bench.model.get_submodule(path)

        def pairs(edited: Sequence[Passage], original: Sequence[Passage], batch: Any) -> tuple[Tensor, Tensor]:
            stream = bench.exact(edited[1].y)
            folded = bench.exact(edited[0].y).view_as(stream)
            return folded, bench.exact(original[0].y) - (stream - folded)

        intercept = self.bias or getattr(projection, "bias", None) is not None
        modules = [projection, bench.stack.blocks[before]], [site.modules[-1]]
        fitted, tokens = site.least_squares(*modules, pairs, intercept=intercept)
        new = folded_projection(projection, fitted.weight, fitted.bias if intercept else None)
        return Fit({**site.left_out(), path: new}, fitted, tokens)

    def __str__(self) -> str:
        return f"{self.name}, with a bias" if self.bias else self.name

"""What every kind of replacement has, and what those share that are linear maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import PositiveInt

from rectilinear.errors import RequestError
from rectilinear.settings import Settings, Target

if TYPE_CHECKING:
    from torch import nn

    from rectilinear.linearization.fit import Fit, Site
    from rectilinear.linearization.replacement import Replacement
    from rectilinear.linearization.workbench import Workbench
    from rectilinear.models.find_blocks import BlockStack
    from rectilinear.models.linear_block import LinearBlock
    from rectilinear.models.parts import Part


class Kind(Settings):
    """What takes the place of a block or of a part of one; its fields are its options.

    The first line of a kind's docstring is its help. Importing a kind must not import torch.

    Attributes:
        name: in ``--kind`` and plan.json.
        impossible: why it cannot take a target, and what to try.
        removes_blocks: whether a block that it replaces is gone for good, so that the checkpoint is a stock one.
        needs_block_before: whether it is written into the block before, which then has to stay: consecutive blocks
            are always replaced as one.
        trainable: whether it has weights to heal.
        keeps_weights: whether the target's own weights stay, so that what it saves is no parameters.
    """

    name: ClassVar[str]
    impossible: ClassVar[Mapping[Target, str]] = {}
    removes_blocks: ClassVar[bool] = False
    needs_block_before: ClassVar[bool] = False
    trainable: ClassVar[bool] = True
    keeps_weights: ClassVar[bool] = False

    @property
    def remembers(self) -> bool:
        """Whether what it gives for a token depends on those before, so that decoding keeps something of them."""
        return False

    def spelled(self) -> str:
        """Its name and those of its options that are not as usual, as `parse_kinds` reads them."""
        options = self.model_dump(mode="json", exclude_defaults=True)
        texts = {
            name: ",".join(map(str, value)) or "none" if isinstance(value, list) else value
            for name, value in options.items()
        }
        return ":".join([self.name, *(f"{name}={text}" for name, text in texts.items())])

    def check_given(self) -> None:
        """Raise a `RequestError` for options that were given and would change nothing."""

    def check(self, width: int) -> None:
        """Raise a `RequestError` for options that make no sense for hidden states of a width."""

    def check_model(self, model: nn.Module, stack: BlockStack, index: int) -> None:
        """Raise a `RequestError` for a model, with its weights, in which the block at ``index`` cannot be replaced."""

    def check_part(self, model: nn.Module, part: Part) -> None:
        """Raise a `RequestError` for a part of a block, with its weights, that it cannot take the place of."""

    def parameters(self, width: int, target: Target) -> int:
        """How many parameters take the place of those that are replaced; not asked where these stay."""
        return 0

    def comes_along(self, model: nn.Module, stack: BlockStack) -> Mapping[str, int]:
        """How many parameters a model, with its weights, gets elsewhere where anything in it is replaced, by module."""
        return {}

    def features(self, width: int, target: Target) -> int:
        """How many numbers a token the map takes that is fitted; 0 where none is."""
        return 0

    def prepare(self, bench: Workbench, replacements: Sequence[Replacement]) -> Mapping[Replacement, Any]:
        """What is decided for all replacements by this kind together, before any of them is fitted."""
        return {}

    def fit(self, site: Site) -> Fit:
        """Fit it, and make the modules that carry it out.

        Raises:
            JobError: activations that are not finite, or a module that does not run.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        """Its name and options for a table."""
        return self.name


class LinearMap(Kind):
    """Base of kinds that map features of the input to the output, or for a whole block to its update."""

    rank: PositiveInt | None = None
    """Rank of affine maps and filters; full when not given."""

    def check(self, width: int) -> None:
        """Refuse a rank that is none."""
        if self.rank is not None and self.rank >= width:
            raise RequestError(f"expected a `rank` below the width of {width}, got {self.rank}")

    def module_options(self, target: Target) -> dict[str, Any]:
        """Options of the `LinearBlock` that carries it out, but for those that its place decides."""
        return {"kind": self.name, "rank": self.rank}

    def parameters(self, width: int, target: Target) -> int:
        """Those of the map and its bias."""
        from rectilinear.models.describe import count_parameters

        return count_parameters([self._module(width, target)])

    def features(self, width: int, target: Target) -> int:
        """Those of its filter."""
        return int(cast(Any, self._module(width, target).map)[0].in_features)

    def _module(self, width: int, target: Target) -> LinearBlock:
        """What carries it out, without weights."""
        import torch

        from rectilinear.models.linear_block import LinearBlock

        with torch.device("meta"):
            return LinearBlock(width, residual=False, **self.module_options(target))

    def fit(self, site: Site) -> Fit:
        """Least squares, with a ridge chosen by held-out folds."""
        import torch

        new = site.stand_in(**self.module_options(site.target))
        fit, layers = site.regress(new, self.rank), cast(Any, new.map)
        if fit.map:
            with torch.no_grad():
                for layer, factor in zip(layers, fit.map.factors, strict=True):
                    layer.weight.copy_(factor.T)
                layers[-1].bias.copy_(fit.map.bias)
        return fit

    def __str__(self) -> str:
        return self.name if self.rank is None else f"{self.name}, rank {self.rank}"

"""Hidden states by depth: their geometry, and what they say of the next token."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from rectilinear.core.block_moments import BlockAccumulator, NonFiniteError
from rectilinear.core.forms import anisotropy, effective_rank
from rectilinear.core.moments import Moments, total
from rectilinear.errors import JobError, first_line
from rectilinear.intervals import mean_over_groups
from rectilinear.measurement.depths import states_by_depth
from rectilinear.measurement.explanation import DepthRecord
from rectilinear.measurement.residuals import LinearMap, Looking
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.lens import Lens
from rectilinear.progress import Progress

# Tokens that the intrinsic dimension is estimated from.
_SAMPLE = 2000


def measure_depths(
    model: nn.Module, stack: BlockStack, looking: Looking, lens: Lens | None, progress: Progress | None = None
) -> tuple[tuple[DepthRecord, ...], float | None]:
    """Every depth, and the accuracy of the model itself; lenses are tried on the last fold, maps fitted on the others.

    Raises:
        JobError: activations that are not finite, or a block that did not run once.
    """
    ids = looking.rows[looking.first :].cpu()
    moments = _moments(model, stack, looking, progress)
    jumps = [LinearMap.of(train) for train, _ in moments] if lens else []  # to what is added up to the last depth
    chosen = torch.randperm(ids.numel(), generator=torch.Generator().manual_seed(0))[:_SAMPLE].sort().values
    samples: list[list[Tensor]] = [[] for _ in moments]
    right: list[list[list[int]]] = [[[], []] for _ in moments]  # by depth: of rows, by both lenses
    begin = 0
    for pieces, states in states_by_depth(model, stack, looking.batches, 1, "rows for lenses", progress):
        rows = sum(piece.stop - piece.start for piece in pieces)
        batch = ids[begin : begin + rows]
        here = chosen[(chosen >= begin * batch.shape[1]) & (chosen < (begin + rows) * batch.shape[1])]
        here = here - begin * batch.shape[1]
        begin += rows
        following = batch[:, 1:].to(states[0].device)
        asked = torch.ones_like(following, dtype=torch.bool) if looking.lead is None else following != looking.lead
        for depth, state in enumerate(states):
            samples[depth].append(state.flatten(0, 1)[here.to(state.device)].float().cpu())
            if lens:
                given = state[:, :-1].float()
                for which, moved in enumerate((given, given + jumps[depth](given))):
                    hits = lens(moved.to(state.dtype)) == following
                    right[depth][which] += (hits & asked).sum(1).tolist()
    sizes = [len(row) - 1 if looking.lead is None else int((row[1:] != looking.lead).sum()) for row in ids]
    found = []
    for depth, (_, gram) in enumerate(moments):
        spectrum = torch.linalg.eigvalsh(gram)
        logit, jump = (mean_over_groups(right[depth][which], sizes) if lens else (None, None) for which in (0, 1))
        found.append(
            DepthRecord(
                depth=depth,
                anisotropy=anisotropy(spectrum),
                effective_rank=effective_rank(spectrum),
                intrinsic_dimension=_intrinsic_dimension(torch.cat(samples[depth])),
                logit_lens=logit[0],
                logit_lens_stderr=logit[1],
                jump_lens=jump[0],
                jump_lens_stderr=jump[1],
            )
        )
    return tuple(found), found[-1].logit_lens


def _moments(
    model: nn.Module, stack: BlockStack, looking: Looking, progress: Progress | None
) -> list[tuple[Moments, Tensor]]:
    """Of each depth without sinks: moments with the last one over all folds but the last, the Gram matrix of all."""
    accumulators = [
        BlockAccumulator(looking.folds, looking.sink_ratio, bos=looking.lead) for _ in range(len(stack) + 1)
    ]
    batches = torch.split(looking.rows, looking.batch_size)
    try:
        for pieces, states in states_by_depth(model, stack, batches, looking.folds, "rows by depth", progress):
            for piece in pieces:
                places, last = piece.places(states[0].shape[1]), piece.of(states[-1])
                for accumulator, state in zip(accumulators, states, strict=True):
                    accumulator.update(piece.of(state), last, piece.fold, places)
    except (NonFiniteError, ValueError) as error:
        raise JobError(f"hidden states: {error}") from None
    found = []
    for depth, accumulator in enumerate(accumulators):
        regular = accumulator.freeze().regular
        train, whole = total(regular[:-1]), total(regular)
        if train is None or whole is None:
            raise JobError(f"depth {depth}: expected tokens that are no attention sinks, got none")
        found.append((train, whole.gram))
    return found


def _intrinsic_dimension(sample: Tensor) -> float | None:
    """By TwoNN (Facco et al., 2017) of some tokens; None where scikit-dimension is not installed."""
    try:
        from skdim.id import TwoNN
    except ImportError:
        return None
    except Exception as error:  # of the libraries that it needs
        warnings.warn(f"no intrinsic dimensions: scikit-dimension does not load: {first_line(error)}", stacklevel=2)
        return None
    # Equal states, as of equal first tokens, are at no distance.
    different: Tensor = torch.unique(sample.double(), dim=0)
    return float(TwoNN().fit(different.numpy()).dimension_) if len(different) > 2 else None

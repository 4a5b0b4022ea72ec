"""Hidden states by depth: their geometry, and what they say of the next token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rectilinear.core.block_moments import BlockAccumulator, NonFiniteError
from rectilinear.core.forms import anisotropy, effective_rank
from rectilinear.core.moments import Moments, total
from rectilinear.core.solve import solve
from rectilinear.errors import JobError
from rectilinear.intervals import mean_over_groups
from rectilinear.measurement.collect import RowFacts
from rectilinear.measurement.depths import states_by_depth
from rectilinear.measurement.explanation import DepthRecord
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.lens import Lens
from rectilinear.progress import Progress

# Tokens that the intrinsic dimension is estimated from.
_SAMPLE = 2000


def measure_depths(
    model: nn.Module,
    stack: BlockStack,
    batches: Sequence[Tensor],
    folds: int,
    sink_ratio: float,
    lens: Lens | None,
    rows: RowFacts,
    progress: Progress | None = None,
) -> tuple[tuple[DepthRecord, ...], float | None]:
    """Every depth, and the accuracy of the model itself; lenses are tried on the last fold, maps fitted on the others.

    Raises:
        JobError: activations that are not finite, or a block that did not run once.
    """
    moments = _moments(model, stack, batches, folds, sink_ratio, rows, progress)
    jumps = [solve(train) for train, _ in moments] if lens else []
    samples: list[list[Tensor]] = [[] for _ in moments]
    right: list[list[list[int]]] = [[[], []] for _ in moments]  # by depth: of rows, by both lenses
    for _, pieces, states in states_by_depth(model, stack, batches, folds, "rows for lenses", progress):
        for piece in pieces:
            if piece.fold != folds - 1 or piece.ids is None:
                continue
            following = piece.ids[:, 1:].to(states[0].device)
            for depth, state in enumerate(states):
                kept = state[piece.start : piece.stop].float()
                samples[depth].append(kept.flatten(0, 1).cpu())
                if lens:
                    train, jump = moments[depth][0], jumps[depth].coefficients.float()
                    moved = kept + (kept - train.mean_x.to(kept)) @ jump.to(kept) + train.mean_d.to(kept)
                    for which, given in enumerate((kept, moved)):
                        hits = lens(given[:, :-1].to(state.dtype)) == following
                        right[depth][which] += hits.sum(1).tolist()
    sizes = [batches[0].shape[1] - 1] * len(right[0][0])
    found = []
    for depth, (_, gram) in enumerate(moments):
        spectrum = torch.linalg.eigvalsh(gram)
        logit, jump_accuracy = (
            mean_over_groups(right[depth][which], sizes) if lens else (None, None) for which in (0, 1)
        )
        found.append(
            DepthRecord(
                depth=depth,
                anisotropy=anisotropy(spectrum),
                effective_rank=effective_rank(spectrum),
                intrinsic_dimension=_intrinsic_dimension(torch.cat(samples[depth])),
                logit_lens=logit[0],
                logit_lens_stderr=logit[1],
                jump_lens=jump_accuracy[0],
                jump_lens_stderr=jump_accuracy[1],
            )
        )
    return tuple(found), found[-1].logit_lens


def _moments(
    model: nn.Module,
    stack: BlockStack,
    batches: Sequence[Tensor],
    folds: int,
    sink_ratio: float,
    rows: RowFacts,
    progress: Progress | None,
) -> list[tuple[Moments, Tensor]]:
    """Of each depth without sinks: moments with the last one over all folds but the last, the Gram matrix of all."""
    accumulators = [BlockAccumulator(folds, sink_ratio, bos=rows.lead) for _ in range(len(stack) + 1)]
    try:
        for _, pieces, states in states_by_depth(model, stack, batches, folds, "rows by depth", progress):
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


def _intrinsic_dimension(states: Tensor) -> float | None:
    """By TwoNN (Facco et al., 2017) of a sample of tokens; None where scikit-dimension is not installed."""
    try:
        from skdim.id import TwoNN
    except ImportError:
        return None
    chosen = torch.randperm(len(states), generator=torch.Generator().manual_seed(0))[:_SAMPLE]
    sample: Tensor = torch.unique(
        states[chosen].double(), dim=0
    )  # equal states, as of equal first tokens, are at no distance
    return float(TwoNN().fit(sample.numpy()).dimension_) if len(sample) > 2 else None

"""Hidden states of whole texts, one vector for each at every depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rectilinear.errors import JobError
from rectilinear.models.capture import capture_blocks
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.running import device_of, evaluating, run
from rectilinear.progress import Progress
from rectilinear.settings import Pooling


@torch.no_grad()
def pool_states(
    module: nn.Module,
    stack: BlockStack,
    texts: Sequence[Tensor],
    batch_size: int,
    pooling: Pooling = "mean",
    progress: Progress | None = None,
) -> Tensor:
    """One vector for each text at every depth of the residual stream.

    Depth 0 is what goes into the first block, depth k what comes out of the k-th, before the final norm. States are
    pooled as blocks run, so that those of single tokens are never kept.

    Args:
        module, stack: the decoder and its blocks.
        texts: token ids, int64 ``[tokens]`` each, at least one text and one token.
        batch_size: texts in a forward pass.
        pooling: over the tokens of a text.
        progress: called with (stage, done, total).

    Returns:
        ``[texts, blocks + 1, width]`` float32 on the CPU.

    Raises:
        JobError: activations that are not finite.
    """
    device = device_of(module)
    # Of similar length together, which saves padding.
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    pooled = torch.empty(0)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        ids = pad_sequence([texts[place] for place in places], batch_first=True).to(device)
        lengths = torch.tensor([len(texts[place]) for place in places], device=device)
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        states: dict[int, Tensor] = {}

        def consume(index: int, x: Tensor, y: Tensor, mask: Tensor = mask, states: dict[int, Tensor] = states) -> None:
            if index == 0:
                states[0] = _pool(x, mask, pooling)
            states[index + 1] = _pool(y, mask, pooling)

        with evaluating(module), capture_blocks(list(stack), consume):
            run(module, {"input_ids": ids, "attention_mask": mask.long()})
        batch = torch.stack([states[depth] for depth in sorted(states)], 1).cpu()
        if not batch.isfinite().all():
            depth = int((~batch.isfinite()).any(-1).any(0).nonzero()[0])
            raise JobError(f"expected finite hidden states, got others at depth {depth}; try `dtype=float32`")
        if start == 0:
            pooled = batch.new_empty(len(texts), *batch.shape[1:])
        pooled[places] = batch
        if progress:
            progress("hidden states", min(start + batch_size, len(order)), len(order))
    return pooled


def _pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """``[texts, width]`` float32 of ``[texts, tokens, width]``, padding on the right left out."""
    lengths = mask.sum(1)
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), lengths - 1].float()
    total = torch.where(mask[..., None], states, 0).sum(1, dtype=torch.float32)
    return total / lengths[:, None]

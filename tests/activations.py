"""What goes into blocks and comes out of them, stored as it is; nothing here imports the package."""

import numpy as np
import torch


def stored(blocks, run, inputs, of_text):
    """Inputs and outputs of each block, ``(x, y)`` of ``[tokens, width]``; None for one that never runs.

    Args:
        blocks: modules.
        run: runs their model on one of the inputs.
        inputs: what to run it on, one after the other.
        of_text: what counts of hidden states as a block takes or gives them, ``[tokens, width]``.
    """
    pairs = [[] for _ in blocks]

    def noting(found):
        def note(module, args, kwargs, output):
            given = [*args[:1], *([kwargs["hidden_states"]] if "hidden_states" in kwargs else []), *kwargs.values()]
            x = next(value for value in given if isinstance(value, torch.Tensor) and value.is_floating_point())
            y = output if isinstance(output, torch.Tensor) else _first(output)
            found.append([of_text(hidden).double().numpy() for hidden in (x, y)])

        return note

    handles = [
        block.register_forward_hook(noting(found), with_kwargs=True) for block, found in zip(blocks, pairs, strict=True)
    ]
    with torch.no_grad():
        for each in inputs:
            run(each)
    for handle in handles:
        handle.remove()
    return [tuple(map(np.concatenate, zip(*found, strict=True))) if found else None for found in pairs]


def _first(output):
    return next(iter(output.values())) if hasattr(output, "values") else output[0]

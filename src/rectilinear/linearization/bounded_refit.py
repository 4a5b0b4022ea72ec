"""Putting bounded attention in, and mapping what it lacks from what it has."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rectilinear.linearization.fit import Fit, Site
from rectilinear.linearization.windows import Wanted, bound
from rectilinear.models.attention_probe import find_attention
from rectilinear.models.capture import Passage
from rectilinear.text.batches import Batch

# Ridges of the map, and the least share of what is missing that it has to explain.
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_LEAST = 0.005


def place(site: Site, wanted: Wanted) -> Fit:
    """Bounded attention in the place of an attention; with a far summary, what it lacks is mapped from what it has.

    The map takes what the heads give and the mean values of far tokens, of tokens that have any, to what the original's
    residual stream has after the attention and the edited model's has not. Errors of a token count relative to the
    stream's size. Where the map explains next to nothing of held-out rows there is none.
    """
    bench, (part,) = site.bench, site.parts
    if site.prepared is None:
        with site.trying():
            path = find_attention(bench.model, part, bench.one_row)
        return Fit({path: bound(site, path, [wanted.window], wanted)}, windows=(wanted.window,))
    found, windows = site.prepared
    path, attention = found.path, bench.model.get_submodule(found.path)
    if found.far is None or not wanted.refit or path != part.path:
        return Fit({path: bound(site, path, windows, wanted, found)}, windows=tuple(windows))
    features = (found.far["heads"] + len(found.errors)) * found.value_width + 1
    new = bound(site, path, windows, wanted, found, [features, part.width])
    new.far_output.weight.data.zero_()
    given = list[Tensor]()

    def pairs(edited: Sequence[Passage], original: Sequence[Passage], batch: Batch) -> tuple[Tensor, Tensor]:
        features, target = bench.exact(given.pop()), site.aim(edited, original)
        stream = target + bench.exact(edited[1].x) if site.corrects else target
        weight = features[..., -1:] / stream.square().mean(-1, keepdim=True).add(1e-6).sqrt()
        return features * weight, (target - bench.exact(edited[0].y)) * weight

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        given[:] = [args[0]]

    context = [site.block] if site.corrects else []
    with new.far_output.register_forward_pre_hook(note):
        fitted, tokens = site.least_squares(
            [new, *context], [attention, *context], pairs, intercept=False, edits={path: new}, ridges=_RIDGES
        )
    if fitted.held_out is None or fitted.held_out < _LEAST:
        new.far_output = None
        return Fit({path: new}, windows=tuple(windows))
    new.far_output.weight.data.copy_(fitted.weight.T)
    return Fit({path: new}, fitted, tokens, tuple(windows))

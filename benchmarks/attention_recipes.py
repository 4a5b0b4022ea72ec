"""Published ways to replace attentions without training: see `recipes`, which has those for blocks."""

from __future__ import annotations

import time

from choosing import Choosing, Joint
from editing import Made, Mapped, fitted, without
from pressing import Pressed
from recipes import least
from torch import nn

from rectilinear import Affine
from rectilinear.models.find_blocks import find_blocks


def llm_drop(choosing: Choosing, count: int) -> Made:
    """LLM-Drop (arXiv 2406.15786): attentions that turn the stream least are left out, by E cos(before, after).

    As published: in one go, from the original. The norm before an attention that is gone stays, as it does nothing.
    """
    distance = turned(choosing)
    return without(choosing, least(distance, count), distance, target="attention")


def nbl(choosing: Choosing, count: int) -> Made:
    """NBL (arXiv 2505.21077): attentions become affine maps of the stream before the norm, chosen by CCA.

    As published: least of ``sum(1 - rho^2)`` over canonical correlations of the stream before and after, maps by
    least squares without a ridge, all from the original's states; the norms of these attentions go, as in its scripts
    (``--layer_drop_norm True``). Its LoRA, which is training, is left out.
    """
    bound = dict(enumerate(choosing.survey["cca"]))
    chosen = sorted(least(bound, count))
    start = time.perf_counter()
    joints = {index: Joint() for index in chosen}
    for states in choosing.states():
        for index, joint in joints.items():
            joint.add(states.stream[index], states.attention[index])
    maps = {index: joint.regression() for index, joint in joints.items()}
    made = without(choosing, chosen, bound, target="attention", fit=time.perf_counter() - start)
    for index, block in enumerate(find_blocks(made.model)):
        if index in maps:
            block.self_attn, block.input_layernorm = Mapped(block.self_attn, *maps[index]), nn.Identity()
    return made


def tova(choosing: Choosing, tokens: int) -> Made:
    """TOVA (arXiv 2401.06104), by kvpress: see `pressing.Pressed`, which this machine has to have kvpress for."""
    return Made(choosing.original, (), {}, {"choice": 0.0, "fit": 0.0}, Pressed(tokens, rows=32))


def nbl_sequential(choosing: Choosing, count: int) -> Made:
    """NBL's choice with our fit: maps of what the norm gives, one after another, each making good for those before."""
    bound = dict(enumerate(choosing.survey["cca"]))
    return fitted(choosing, Affine(), least(bound, count), bound, target="attention")


def llm_drop_affine(choosing: Choosing, count: int) -> Made:
    """LLM-Drop's choice with our fit of affine maps."""
    distance = turned(choosing)
    return fitted(choosing, Affine(), least(distance, count), distance, target="attention")


def turned(choosing: Choosing) -> dict[int, float]:
    """1 less the mean cosine of the stream before and after each attention."""
    return {index: 1 - cosine for index, cosine in enumerate(choosing.survey["attention_cosine"])}

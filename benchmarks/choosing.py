"""What methods choose blocks and attentions by: figures of one pass over the original, and losses of trials."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scoring import LOADING, Study, row_losses
from torch import Tensor, nn

from rectilinear.linearization.workbench import count_fitted
from rectilinear.models.capture import capture_blocks, with_first
from rectilinear.models.find_blocks import BlockStack, find_blocks
from rectilinear.models.load import load_model, load_tokenizer
from rectilinear.models.origin import Origin
from rectilinear.models.part_probe import probe_parts
from rectilinear.models.running import evaluating, hooked_before, run
from rectilinear.models.surgery import swapped


class States(NamedTuple):
    """What a batch of rows is in the original: ``[rows, seq_len, width]`` float32 each."""

    stream: list[Tensor]  # before the first block and after each
    attention: list[Tensor]  # what each attention adds


@dataclass(frozen=True)
class Choosing:
    """The original of a study on the rows that are fitted on; nothing of it is ever read from the scored text.

    Attributes:
        study: whose model and texts they are.
        model, texts: folders of the model and of the texts.
        trial_tokens: how many tokens, the first of the text, losses of trials are measured on.
    """

    study: Study
    model: Path
    texts: Path
    trial_tokens: int

    @property
    def source(self) -> tuple[Study, Path, Path]:
        """The study, the model and the texts."""
        return self.study, self.model, self.texts

    @cached_property
    def ids(self) -> Tensor:
        """The rows that are fitted on, ``[rows, seq_len]``."""
        reading = Origin(self.model, LOADING)
        ids = reading.rows(self.texts / self.study.fit, self.study.rows, load_tokenizer(self.model)).ids
        return ids[: count_fitted(ids)]

    @cached_property
    def original(self) -> Any:
        """The model."""
        return load_model(self.model, LOADING)

    @cached_property
    def stack(self) -> BlockStack:
        """Its blocks."""
        return find_blocks(self.original)

    def states(self) -> Iterator[States]:
        """All rows, a batch at a time."""
        parts = probe_parts(self.original, self.stack, self.ids)
        attentions = [parts.part(index, "attention").span(self.original) for index in range(len(self.stack))]
        seen: dict[str, list[Tensor]] = {}

        def block(index: int, x: Tensor, y: Tensor) -> None:
            seen["stream"] += [y.clone()] if index else [x.clone(), y.clone()]

        def attention(index: int, x: Tensor, y: Tensor) -> None:
            seen["attention"].append(y.clone())

        captured = capture_blocks(self.stack.blocks, block), capture_blocks(attentions, attention)
        with evaluating(self.original), captured[0], captured[1]:
            for ids in self.ids.split(self.study.batch):
                seen |= {"stream": [], "attention": []}
                run(self.original, ids)
                yield States(**seen)

    @cached_property
    def survey(self) -> dict[str, Any]:
        """The figures of `measure_survey`, kept beside the cells."""
        return kept(self.study.file("survey"), self.measure_survey)

    def measure_survey(self) -> dict[str, Any]:
        """What blocks and attentions are chosen by, from one pass over the original.

        ``cosine`` and ``angle`` of depths i and j, the streams before block i and before block j: the mean cosine over
        all tokens; the mean of ``arccos(cosine) / pi`` over the last tokens of rows. ``attention_cosine``: of the
        stream before an attention and after it. ``cca``: ``sum(1 - rho^2)`` over the canonical correlations rho of
        these two.
        """
        start, depth = time.perf_counter(), len(self.stack)
        cosine, angle, attention = torch.zeros(depth + 1, depth + 1), torch.zeros(depth + 1, depth + 1), []
        moments = [Joint() for _ in range(depth)]
        for states in self.states():
            unit = torch.nn.functional.normalize(torch.stack(states.stream), dim=-1)
            between = torch.einsum("irtw,jrtw->ijrt", unit, unit).clamp(-1, 1)
            cosine += between.sum((2, 3))
            angle += between[..., -1].arccos().sum(2) / torch.pi
            after = [x + a for x, a in zip(states.stream, states.attention, strict=False)]
            alike = zip(states.stream, after, strict=False)
            attention.append(torch.stack([torch.cosine_similarity(x, y, dim=-1).sum() for x, y in alike]))
            for joint, x, y in zip(moments, states.stream, after, strict=False):
                joint.add(x, y)
        return {
            "tokens": self.ids.numel(),
            "cosine": (cosine / self.ids.numel()).tolist(),
            "angle": (angle / len(self.ids)).tolist(),
            "attention_cosine": (sum(attention) / self.ids.numel()).tolist(),
            "cca": [joint.cca_bound() for joint in moments],
            "seconds": time.perf_counter() - start,
        }

    @cached_property
    def trials(self) -> Trials:
        """Losses without some blocks."""
        return Trials(self)


@dataclass
class Joint:
    """Counts, sums and products of pairs of vectors, float64."""

    count: int = 0
    sums: Tensor | float = 0.0
    products: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in ``[..., p]`` and ``[..., q]``."""
        both = torch.cat([x, y], -1).flatten(0, -2).double()
        self.count += len(both)
        self.sums, self.products = self.sums + both.sum(0), self.products + both.T @ both

    @property
    def covariance(self) -> Tensor:
        """``[p + q, p + q]``."""
        mean = torch.as_tensor(self.sums) / self.count
        return torch.as_tensor(self.products) / self.count - torch.outer(mean, mean)

    def cca_bound(self) -> float:
        """``sum(1 - rho^2)`` of vectors of one width; directions without variance in float32 count as uncorrelated."""
        width = len(self.covariance) // 2
        whole = self.covariance
        roots = []
        for part in (whole[:width, :width], whole[width:, width:]):
            values, vectors = torch.linalg.eigh(part)
            kept = values > 1e-10 * values[-1]
            roots.append(vectors[:, kept] / values[kept].sqrt())
        correlations = torch.linalg.svdvals(roots[0].T @ whole[:width, width:] @ roots[1]).clamp(max=1)
        return float(width - (correlations**2).sum())

    def regression(self) -> tuple[Tensor, Tensor]:
        """Matrix ``[p, p]`` and bias ``[p]`` of the least squares of y on x, of one width, without a ridge."""
        width, mean = len(self.covariance) // 2, torch.as_tensor(self.sums) / self.count
        matrix = torch.linalg.solve(self.covariance[:width, :width], self.covariance[:width, width:])
        return matrix, mean[width:] - mean[:width] @ matrix


class Skip(nn.Module):
    """Nothing, in place of a block."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What came, as a block of Llama's layout would give it."""
        return hidden_states


@dataclass
class Trials:
    """Losses of the original without some blocks, on the first tokens that are fitted on; each is measured once.

    They are kept in a file beside the cells, with the seconds that each took.
    """

    choosing: Choosing
    known: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.file = self.choosing.study.file("trials")
        if self.file.exists():
            self.known = json.loads(self.file.read_text())

    def without(self, gone: Sequence[int], candidates: Sequence[int]) -> dict[int, dict[str, float]]:
        """Loss in nats a token, and seconds, without the blocks ``gone`` and each of the candidates."""
        names = {one: ",".join(map(str, sorted([*gone, one]))) for one in candidates}
        if missing := [one for one in candidates if names[one] not in self.known]:
            self.known |= {names[one]: found for one, found in self._measure(gone, missing).items()}
            self.file.parent.mkdir(exist_ok=True)
            self.file.write_text(json.dumps(self.known, indent=1) + "\n")
        return {one: self.known[names[one]] for one in candidates}

    def _measure(self, gone: Sequence[int], candidates: Sequence[int]) -> dict[int, dict[str, float]]:
        choosing, study = self.choosing, self.choosing.study
        ids = choosing.ids[: choosing.trial_tokens // study.seq_len]
        found = {one: {"loss": 0.0, "seconds": 0.0} for one in candidates}
        for part in ids.split(study.batch):
            given = self._inputs(gone, part)
            for one in candidates:
                start = time.perf_counter()
                lost = self._resumed(given[one], [*gone, one], one, part)
                found[one]["loss"] += float(lost.double().sum()) / (len(ids) * (study.seq_len - 1))
                found[one]["seconds"] += time.perf_counter() - start
        return found

    def _inputs(self, gone: Sequence[int], ids: Tensor) -> dict[int, Tensor]:
        """What each block is given in the model without some."""
        seen: dict[int, Tensor] = {}
        model, stack = self.choosing.original, self.choosing.stack
        edits = {stack.path_of(index): Skip() for index in gone}
        with evaluating(model), swapped(model, edits):
            blocks = [model.get_submodule(stack.path_of(index)) for index in range(len(stack))]
            with capture_blocks(blocks, lambda index, x, y: seen.update({index: x.clone()})):
                run(model, ids)
        return seen

    def _resumed(self, given: Tensor, gone: Sequence[int], begins: int, ids: Tensor) -> Tensor:
        """Losses without some blocks, where what the block ``begins`` is given is known: none before it is run."""
        model, stack = self.choosing.original, self.choosing.stack
        edits = {stack.path_of(index): Skip() for index in {*gone, *range(begins)}}

        def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_first(args, given), kwargs

        with (
            evaluating(model),
            torch.no_grad(),
            swapped(model, edits),
            hooked_before([model.get_submodule(stack.path_of(begins))], put),
        ):
            return row_losses(model, ids)


def kept(file: Path, measure: Any) -> dict[str, Any]:
    """What a file has; measured and written where it is not there."""
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(measure(), indent=1) + "\n")
    return dict(json.loads(file.read_text()))


def best(values: Mapping[Any, float]) -> Any:
    """The key of the least value."""
    return min(values, key=lambda key: values[key])

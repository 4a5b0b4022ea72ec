"""What a model is measured on: rows of a text, or tokens as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rectilinear.measurement.collect import RowFacts
from rectilinear.measurement.partners import Partners
from rectilinear.measurement.pieces import count_rows
from rectilinear.models.describe import check_rows
from rectilinear.models.origin import Origin
from rectilinear.results import DataRecord
from rectilinear.text.batches import Batch, as_batches, tensors_of
from rectilinear.text.fingerprint import fingerprint
from rectilinear.text.rows import TokenRows
from rectilinear.text.settings import Rows
from rectilinear.text.sources import name_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a model is run on, and how a result file describes it.

    Attributes:
        data: batches, or rows ``[rows, seq_len]`` that are cut into batches as memory allows.
        source, fingerprint: where they come from, and their SHA-256.
        seq_len: tokens in a row; None where batches are of any shape.
        reading: how text was read, for the settings.
        rows: what is known of its rows.
    """

    data: Tensor | Sequence[Batch]
    source: str
    fingerprint: str
    seq_len: int | None
    reading: Mapping[str, Any]
    rows: RowFacts = RowFacts()

    @property
    def tokens(self) -> int:
        """How many tokens they are, padding included."""
        batches = [self.data] if isinstance(self.data, Tensor) else self.data
        return sum(first.shape[:2].numel() for first, *_ in map(tensors_of, batches))

    def record(self, tokens: int, rows: int) -> DataRecord:
        """Describe them, of which some were measured."""
        return DataRecord(
            source=self.source,
            fingerprint=self.fingerprint,
            tokens=tokens,
            rows=rows,
            seq_len=self.seq_len,
            documents=self.rows.documents,
        )


def read_inputs(
    origin: Origin, text: Any, rows: Rows = Rows(), tokenizer: PreTrainedTokenizerBase | None = None
) -> Inputs:
    """What a model is run on: rows of a text, or tokens as they are; needs no weights.

    Raises:
        RequestError: no such text, or nothing that the model can take.
    """
    tokens = as_batches(text)
    if tokens is not None:
        return token_inputs(tokens, origin.config)
    packed = origin.rows(text, rows, tokenizer)
    return text_inputs(packed, name_source(text), rows.model_dump(exclude={"seq_len"}))


def text_inputs(packed: TokenRows, source: str, reading: Mapping[str, Any]) -> Inputs:
    """Rows of a text, read in some way."""
    facts = RowFacts(Partners.of(packed.documents), packed.bos, packed.lead, packed.count)
    return Inputs(packed.ids, source, packed.fingerprint, packed.ids.shape[1], reading, facts)


def token_inputs(tokens: Tensor | Sequence[Batch], config: Any, source: str | None = None) -> Inputs:
    """Rows ``[rows, seq_len]`` or batches that a model of some configuration can take.

    Raises:
        RequestError: ids that it cannot take.
    """
    if isinstance(tokens, Tensor):
        ids = tokens.detach().cpu()
        check_rows(config, ids)
        return Inputs(ids, source or "rows", fingerprint([ids]), ids.shape[1], {}, RowFacts(Partners.by_half(len(ids))))
    tensors = [tensors_of(batch) for batch in tokens]
    for first, *_ in filter(None, tensors):
        check_rows(config, first)
    parts = [part for some in tensors for tensor in some for part in (f"{[*tensor.shape]}", tensor)]
    facts = RowFacts(Partners.by_half(sum(map(count_rows, tokens))))
    return Inputs(tokens, "batches", fingerprint(parts), None, {}, facts)

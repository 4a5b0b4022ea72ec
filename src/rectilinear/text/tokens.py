"""Documents to token ids: short ones whole, long ones in windows whose tokens are those of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: A text, or its pieces in order, which are read when they are needed and before the next document is.
Document = str | Iterable[str]


class Tokens(NamedTuple):
    """Token ids of a document, special tokens included: all of them, or some that follow those given before."""

    ids: Sequence[int]
    begins: bool  # whether they are the first of their document


#: The tokens of documents in order.
Tokenize = Callable[[Iterable[Document]], Iterator[Tokens]]

# Characters of a document that is tokenised as a whole, and of a window of a longer one; of two windows that overlap.
_WINDOW, _OVERLAP = 65_536, 4_096

# Documents, and about how many characters, that are tokenised at once.
_GROUP, _GROUP_CHARACTERS = 64, 1_048_576


def trim_documents(documents: Iterable[Document], longest: int = _WINDOW) -> Iterator[Document]:
    """Documents without surrounding white space, empty ones left out; longer ones than ``longest`` read as needed."""
    for document in documents:
        beginning, length = [], 0
        pieces = _trim(_slices([document] if isinstance(document, str) else document, longest))
        for piece in pieces:
            beginning.append(piece)
            length += len(piece)
            if length > longest:
                yield chain(beginning, pieces)
                break
        else:
            if beginning:
                yield "".join(beginning)


def tokenize_with(tokenizer: PreTrainedTokenizerBase, window: int = _WINDOW, overlap: int = _OVERLAP) -> Tokenize:
    """A tokenizer, applied to documents: the ids of each are those of the whole, with its own special tokens.

    What is longer than a window is tokenised window by window. Where two of them overlap, the tokens in the middle of
    the overlap must be the same, ids and places: then neither the end of the one nor the beginning of the other
    reaches so far, and the second goes on where the first is left. Where they differ, the first window is doubled.

    A tokenizer that does not tell places in the text gets whole documents.

    Args:
        tokenizer: of transformers.
        window, overlap: characters of a window, and those that two windows share; at most half of one.
    """

    def tokenize(documents: Iterable[Document]) -> Iterator[Tokens]:
        group: list[str] = []
        for document in documents:
            if isinstance(document, str):
                group.append(document)
                if len(group) < _GROUP and sum(map(len, group)) <= _GROUP_CHARACTERS:
                    continue
            yield from ids_of(group)
            group = []
            if not isinstance(document, str):
                if tokenizer.is_fast:
                    yield from _tokenize_windows(document, tokenizer, window, overlap)
                else:
                    yield from ids_of(["".join(document)])
        yield from ids_of(group)

    def ids_of(texts: list[str]) -> Iterator[Tokens]:
        # verbose=False: documents longer than the context are cut into rows, no need to warn.
        for ids in tokenizer(texts, verbose=False)["input_ids"] if texts else []:
            yield Tokens(ids, True)

    return tokenize


def _tokenize_windows(
    pieces: Iterable[str], tokenizer: PreTrainedTokenizerBase, window: int, overlap: int
) -> Iterator[Tokens]:
    take = _reader(pieces, window)
    text, given, begins = take(window), 0, True
    tokens = _encode(tokenizer, text)
    while more := take(window - overlap):
        start = len(text) - overlap  # of the next window, in this one
        first, last = start + overlap // 4, start + 3 * overlap // 4
        following = _encode(tokenizer, text[start:] + more)
        shared = [place for place, (_, begin, _) in enumerate(tokens) if first <= begin < last]
        again = [place for place, (_, begin, _) in enumerate(following) if first <= begin + start < last]
        same = [tokens[place] for place in shared] == [
            (token, begin + start, end + start) for token, begin, end in (following[place] for place in again)
        ]
        if shared and same and _is_split(tokenizer, text[first:last]):
            half = len(shared) // 2
            yield Tokens([token for token, _, _ in tokens[given : shared[half]]], begins)
            text, tokens, given, begins = text[start:] + more, following, again[half], False
        else:
            text += more + take(len(text))
            tokens = _encode(tokenizer, text)
    yield Tokens([token for token, _, _ in tokens[given:]], begins)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int, int]]:
    """Token ids, each with where in the text it begins and ends; special ones that the tokenizer adds are at 0."""
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    return [(token, *place) for token, place in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)]


def _is_split(tokenizer: Any, text: str) -> bool:
    """Whether what follows a place in a text is tokenised whatever was before it.

    One word without end may be divided from its end (digits by threes), so there have to be two. A unigram model
    weighs a piece as a whole, where rounding decides between ways to divide that are equally good; it has to
    begin a piece of its own there.
    """
    from tokenizers.models import Unigram

    if len(text.split()) < 2:
        return False
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, Unigram):
        return True
    normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
    return backend.pre_tokenizer is not None and len(backend.pre_tokenizer.pre_tokenize_str(normal)) > 1


def _reader(pieces: Iterable[str], longest: int) -> Callable[[int], str]:
    """A function that takes the next characters of a text in pieces, of at most ``longest`` each."""
    source, rest = _slices(pieces, longest), ""

    def take(size: int) -> str:
        nonlocal rest
        parts, length = [rest], len(rest)
        while length < size and (piece := next(source, "")):
            parts.append(piece)
            length += len(piece)
        text = "".join(parts)
        rest = text[size:]
        return text[:size]

    return take


def _slices(pieces: Iterable[str], longest: int) -> Iterator[str]:
    """The same text in pieces of at most that many characters, none of them empty."""
    return (piece[start : start + longest] for piece in pieces for start in range(0, len(piece), longest))


def _trim(pieces: Iterable[str]) -> Iterator[str]:
    """A text in pieces without the white space around it."""
    space: list[str] = []  # what is text only if text follows
    begun = False
    for piece in pieces:
        if text := piece.rstrip():
            yield "".join(space) + text if begun else text.lstrip()
            space, begun = [piece[len(text) :]], True
        elif begun:
            space.append(piece)

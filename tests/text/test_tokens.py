"""Windows of a long document have the tokens of the whole, with tokenizers of words and with those of whole texts."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rectilinear.text.rows import pack_rows
from rectilinear.text.tokens import tokenize_with, trim_documents

WINDOW, OVERLAP = 512, 192


# Runs of tokens that are divided from where they begin, or from where they end.
RUNS = "aa aaa aaaa aaaaaaaa ab abab 11 111 1112 ..., ?! é"


def byte_level(documents):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*documents, *[RUNS] * 50], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def unigram(documents, *, split):
    """As sentencepiece makes them: white space is part of the tokens, and words are split off or not."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", max_piece_length=8, show_progress=False
    )
    tokenizer.train_from_iterator([*documents, *[RUNS] * 50], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def wordpiece(documents):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=30))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(documents, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    ids = [(token, tokenizer.token_to_id(token)) for token in special[1:]]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


KINDS = ("byte-level BPE", "BPE of whole texts", "unigram of words", "unigram of whole texts", "WordPiece")


@pytest.fixture(scope="module")
def tokenizers(documents, shared):
    return {
        "byte-level BPE": byte_level(documents),
        "BPE of whole texts": AutoTokenizer.from_pretrained(shared / "models" / "stories260K"),
        "unigram of words": unigram(documents, split=True),
        "unigram of whole texts": unigram(documents, split=False),
        "WordPiece": wordpiece(documents),
    }


def in_windows(tokenizer, document, window=WINDOW, overlap=OVERLAP):
    """The tokens of a document, and how many pieces they came in."""
    tokens = [*tokenize_with(tokenizer, window, overlap)(trim_documents([document], window))]
    assert [part.begins for part in tokens] == [True] * bool(tokens) + [False] * (len(tokens) - 1)
    return [token for part in tokens for token in part.ids], len(tokens)


WORDS = ("The", "cat", "saw", "a", "red hen,", "lost.", "\n", "  ", "\n\n \t", "aaaaaaa", "1112", "été", "日本語",
         "🙂", "e\u0301", "<s>", "</s>", "…", "unbelievable", "\u00a0", "ﬁ", "'ll")  # fmt: skip
REPEATED = st.sampled_from(("a", "ab", " ", "1", "cat", "é", "\n"))
TEXTS = st.lists(
    st.sampled_from(WORDS) | st.builds(str.__mul__, REPEATED, st.integers(1, 300)), min_size=50, max_size=400
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(words=TEXTS, spaced=st.booleans(), length=st.integers(1, 2000))
def test_windows_have_the_tokens_of_the_whole(kind, words, spaced, length, tokenizers):
    text = (" " if spaced else "").join(words)
    pieces = (text[start : start + length] for start in range(0, len(text), length))
    assert in_windows(tokenizers[kind], pieces)[0] == tokenizers[kind](text.strip())["input_ids"] * bool(text.strip())


@pytest.mark.parametrize("kind", KINDS)
def test_real_text_is_read_in_windows(kind, tokenizers, shared):
    text = (shared / "data" / "wikitext2" / "score.txt").read_text(encoding="utf-8")[:100_000]
    tokens, parts = in_windows(tokenizers[kind], text)
    assert tokens == tokenizers[kind](text.strip())["input_ids"]
    # A unigram model of whole texts may have an end that decides about the beginning.
    assert parts == 1 if kind == "unigram of whole texts" else parts > 200


@pytest.mark.parametrize("unit", ["a", "ab", "1", " 1", "cat", "é", "日本", "🙂"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_thing_again_and_again(kind, unit, tokenizers):
    for times in (1000, 1001, 1002, 1003):
        assert in_windows(tokenizers[kind], unit * times)[0] == tokenizers[kind]((unit * times).strip())["input_ids"]


def test_one_token_without_end():
    """What is unknown may be one token, however long; no window has its beginning and its end."""
    backend = Tokenizer(models.BPE({"?": 0, "a": 1}, [], unk_token="?", fuse_unk=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    text = "a" * 700 + "b c " * 1000 + "a" * 700
    assert in_windows(tokenizer, text)[0] == tokenizer(text)["input_ids"] == [1] * 700 + [0] + [1] * 700


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unigram of whole texts"])
def test_a_document_of_any_length_costs_what_is_taken_of_it(kind, tokenizers):
    sentence, read = "The cat saw a red hen, and it was lost.\n", 0

    def endless():
        nonlocal read
        while True:
            read += len(sentence)
            assert read < 10**6, "read on, though there were tokens enough"
            yield sentence

    tokens = 8192
    rows = pack_rows([endless()], tokenize_with(tokenizers[kind]), 64, tokens)
    assert rows.ids.flatten().tolist() == tokenizers[kind](sentence * (read // len(sentence)))["input_ids"][:tokens]
    # Two windows at least; no more than a few times what is needed.
    assert read <= 4 * 65_536


def test_trimmed_pieces_are_the_trimmed_text():
    @given(st.lists(st.text("ab \n\u00a0", max_size=4), max_size=12), st.integers(1, 20))
    def check(pieces, longest):
        whole = "".join(pieces).strip()
        found = [*trim_documents([iter(pieces)], longest)]
        assert ["".join(document) for document in found] == [whole] * bool(whole)
        assert all(isinstance(document, str) == (len(whole) <= longest) for document in found)

    check()

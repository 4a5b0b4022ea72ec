"""Encoders, halves of encoder-decoder models and towers beside text: what is measured, and on which tokens."""

import copy

import pytest
import torch
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    RobertaForMaskedLM,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

import rectilinear
from rectilinear import Measurement, find_blocks
from tests import oracle
from tests.activations import stored
from tests.conftest import linearize

VOCABULARY = 99
SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}


def built(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def seq2seq(kind):
    if kind == "t5":
        sizes = {"d_model": 24, "num_layers": 3, "num_decoder_layers": 4, "num_heads": 4, "d_kv": 6, "d_ff": 40}
        return built(T5Model, T5Config(**sizes, vocab_size=VOCABULARY))
    sizes = {
        f"{half}_{name}": size
        for half in ("encoder", "decoder")
        for name, size in (("layers", 3), ("attention_heads", 4), ("ffn_dim", 40))
    }
    return built(BartModel, BartConfig(d_model=24, **sizes, vocab_size=VOCABULARY, max_position_embeddings=64))


def rows(count=30, length=16, seed=0):
    return torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def kept(model, blocks, batch, mask):
    """Inputs and outputs of blocks on a batch, of the tokens that a mask keeps."""
    return stored(blocks, lambda inputs: model(**inputs), [batch], lambda hidden: hidden[mask])


def check(profile, expected):
    assert len(profile.blocks) == len(expected)
    for block, (x, y) in zip(profile.blocks, expected, strict=True):
        found = block.linearity.in_sample, block.update_linearity.in_sample
        assert found == pytest.approx(oracle.in_sample(x, y), abs=1e-5)


def padded(ids, seed):
    """A mask ``[rows, tokens]`` with some padding at the end of each row."""
    lengths = torch.randint(6, ids.shape[1] + 1, (len(ids), 1), generator=torch.Generator().manual_seed(seed))
    return (torch.arange(ids.shape[1]) < lengths).long()


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_each_half_counts_its_own_tokens(kind, half):
    """An encoder's padding is not a decoder's, though both are of one length."""
    model, ids, own = seq2seq(kind), rows(), rows(seed=1)
    masks = {"encoder": padded(ids, 2), "decoder": padded(own, 3)}
    batch = {
        **{"input_ids": ids, "attention_mask": masks["encoder"]},
        **{"decoder_input_ids": own, "decoder_attention_mask": masks["decoder"]},
    }
    stack = find_blocks(model, half)
    assert stack.path.startswith(half)
    profile = rectilinear.measure(model, [batch], Measurement(blocks=stack.path, folds=2), progress=False)
    assert profile.data.tokens == int(masks[half].sum())
    check(profile, kept(model, stack.blocks, batch, masks[half].bool()))


def test_a_decoder_without_a_mask_of_its_own():
    model = seq2seq("bart")
    batch = {"input_ids": rows(), "attention_mask": padded(rows(), 2), "decoder_input_ids": rows(seed=1)}
    profile = rectilinear.measure(model, [batch], Measurement(blocks="decoder.layers", folds=2), progress=False)
    assert profile.data.tokens == batch["decoder_input_ids"].numel()


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_is_measured_by_itself(kind, tmp_path):
    model = seq2seq(kind)
    model.save_pretrained(tmp_path / "model")
    encoder, ids = model.get_encoder(), rows()
    expected = kept(encoder, find_blocks(encoder).blocks, {"input_ids": ids}, torch.ones_like(ids).bool())
    for source in (model, tmp_path / "model"):
        check(rectilinear.measure(source, ids, Measurement(blocks="encoder", folds=2), progress=False), expected)
    with pytest.raises(rectilinear.RequestError, match="with an encoder and a decoder; measure takes one of them"):
        rectilinear.measure(tmp_path / "model", ids, progress=False)


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, RobertaForMaskedLM])
@pytest.mark.parametrize("blocks", [None, "encoder"])
def test_an_encoder_that_could_have_been_a_decoder(kind, blocks, tmp_path):
    """Its checkpoint has weights for what it was saved as, which need not be those of another class."""
    model, ids = built(kind, kind.config_class(**SIZES, vocab_size=VOCABULARY, pad_token_id=0)), rows()
    model.save_pretrained(tmp_path)
    expected = kept(model, find_blocks(model).blocks, {"input_ids": ids}, torch.ones_like(ids).bool())
    for source in (model, tmp_path) if blocks or kind is not BertModel else (model,):
        check(rectilinear.measure(source, ids, Measurement(blocks=blocks, folds=2), progress=False), expected)


def test_an_encoder_predicts_nothing(tiny_tokenizer, text_file, tmp_path):
    config = BertConfig(**SIZES, vocab_size=len(tiny_tokenizer), max_position_embeddings=64)
    built(BertForMaskedLM, config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    few = {"max_tokens": 320, "seq_len": 16}
    with pytest.raises(rectilinear.RequestError, match="whose tokens see those after them"):
        rectilinear.evaluate(tmp_path, text_file, rows=rectilinear.Rows(**few), progress=False)
    with pytest.raises(rectilinear.RequestError, match="whose tokens see those after them"):
        linearize(tmp_path, text_file, kind="drop", blocks=[1], **few)


def test_a_decoder_has_no_encoder():
    model = built(LlamaForCausalLM, LlamaConfig(**SIZES, vocab_size=VOCABULARY))
    for source in ("storyteller", model):
        with pytest.raises(rectilinear.RequestError, match="expected a model with an encoder of its own"):
            rectilinear.measure(source, rows(), Measurement(blocks="encoder"), progress=False)
    assert len(rectilinear.measure(model, rows(), Measurement(blocks="decoder"), progress=False).blocks) == 3


def test_an_encoder_without_a_decoder():
    model, ids = built(BertModel, BertConfig(**SIZES, vocab_size=VOCABULARY)), rows()
    mask = padded(ids, 2)
    batch = {"input_ids": ids, "attention_mask": mask}
    profile = rectilinear.measure(model, [batch], Measurement(folds=2), progress=False)
    check(profile, kept(model, model.encoder.layer, batch, mask.bool()))


def test_a_model_of_images():
    model = built(ViTModel, ViTConfig(**SIZES, image_size=16, patch_size=4))
    images = torch.randn(30, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    profile = rectilinear.measure(model, [images], Measurement(folds=2), progress=False)
    assert profile.data.tokens == 30 * 17
    every = torch.ones(30, 17, dtype=torch.bool)
    check(profile, kept(model, find_blocks(model).blocks, {"pixel_values": images}, every))


def test_of_text_and_image_the_text_s_decoder_is_found():
    """Not the tower of images beside it, which is as deep and as wide."""
    image = CLIPVisionConfig(**SIZES, image_size=16, patch_size=4, projection_dim=24)
    text = LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=VOCABULARY, pad_token_id=0)
    model = built(
        LlavaForConditionalGeneration, LlavaConfig(vision_config=image, text_config=text, image_token_index=98)
    )
    stack = find_blocks(model)
    assert [type(block).__name__ for block in stack] == ["LlamaDecoderLayer"] * 3
    ids = rows().clamp(max=97)
    profile = rectilinear.measure(copy.deepcopy(model), ids, Measurement(folds=2), progress=False)
    check(profile, kept(model, stack.blocks, {"input_ids": ids}, torch.ones_like(ids).bool()))

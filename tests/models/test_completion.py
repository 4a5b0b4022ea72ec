"""Texts written on from beginnings: alone or padded together, greedy or drawn, up to their end."""

import copy
from collections import Counter

import pytest
import torch
from tokenizers import processors

from rectilinear.errors import RequestError
from rectilinear.models.completion import complete

BEGINNINGS = ["once the cat saw a dog in the old house and", "the bird", "a small tree"]


def greedy_by_hand(model, tokenizer, beginning, tokens):
    ids = tokenizer(beginning, return_tensors="pt")["input_ids"][:, :-1]  # the last one ends the text
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(tokens):
            best = model(ids).logits[0, -1].argmax()
            if best == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, best.view(1, 1)], 1)
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


def test_greedy_texts_are_those_of_a_loop_without_a_cache_or_padding(tiny_llama, tiny_tokenizer):
    found = complete(tiny_llama, tiny_tokenizer, BEGINNINGS, max_new_tokens=9)
    expected = [greedy_by_hand(tiny_llama, tiny_tokenizer, beginning, 9) for beginning in BEGINNINGS]
    assert [text.strip() for text in found] == expected
    assert sum(map(len, expected)) > 20


def test_drawn_texts_depend_on_the_seed_alone_and_leave_the_random_state(tiny_llama, tiny_tokenizer):
    state = torch.get_rng_state()

    def draw(seed):
        return complete(tiny_llama, tiny_tokenizer, BEGINNINGS, max_new_tokens=9, temperature=1.0, seed=seed)

    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_models_own_cuts_of_the_distribution_are_not_used(tiny_llama, tiny_tokenizer):
    model = copy.deepcopy(tiny_llama)
    model.generation_config.top_k = 1
    model.generation_config.do_sample = True
    # Hot enough for every draw to be another: with the cut all of them would be one.
    texts = complete(model, tiny_tokenizer, ["the bird"] * 20, max_new_tokens=8, temperature=5.0)
    assert Counter(texts).most_common(1)[0][1] < 4


def test_a_tokenizer_that_ends_every_text_does_not_end_the_beginning(tiny_llama, tiny_tokenizer):
    ending = copy.deepcopy(tiny_tokenizer)
    end = ending.eos_token
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, ending.eos_token_id)]
    )
    bare = copy.deepcopy(tiny_tokenizer)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert ending("the bird")["input_ids"] == [*bare("the bird")["input_ids"], ending.eos_token_id]
    texts = [complete(tiny_llama, tokenizer, BEGINNINGS, max_new_tokens=6) for tokenizer in (ending, bare)]
    assert texts[0] == texts[1]


def test_a_model_in_training_stays_so(tiny_llama, tiny_tokenizer):
    model = copy.deepcopy(tiny_llama).train()
    complete(model, tiny_tokenizer, ["the bird"], max_new_tokens=2)
    assert model.training


def test_refusals(tiny_llama, tiny_tokenizer):
    context = tiny_llama.config.max_position_embeddings
    with pytest.raises(RequestError, match=f"room for {context} tokens in a context of {context}"):
        complete(tiny_llama, tiny_tokenizer, ["the bird"], max_new_tokens=context)
    bare = copy.deepcopy(tiny_tokenizer)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(RequestError, match="a beginning with tokens"):
        complete(tiny_llama, bare, [""], max_new_tokens=3)

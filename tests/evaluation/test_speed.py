"""What is timed is decoding as transformers does it; no times are tested, but who is timed and how they add up."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rectilinear.errors import JobError, RequestError
from rectilinear.evaluation import speed
from rectilinear.evaluation.speed import measure_speed, plan_speed
from tests.conftest import VOCABULARY, build_llama
from tests.families import cache_in


def prompts(rows=1, seq_len=20):
    return torch.randint(2, VOCABULARY, (rows, seq_len), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rows", [1, 3])
def test_decoded_tokens_are_those_that_generate_gives(rows):
    model, prompt = build_llama(), prompts(rows)
    found = measure_speed(model, prompt, 12)
    expected = model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert torch.equal(found.tokens, expected[:, 20:])
    assert len(found.tokens.unique()) > 2
    assert found.prefill > 0
    assert found.decode > 0


def test_the_cache_holds_keys_and_values_of_every_token():
    found = measure_speed(build_llama(), prompts(), 12)
    assert found.cache_bytes == 2 * 3 * 2 * 4 * (20 + 12) * 4  # kinds, blocks, key-value heads, width, tokens, bytes
    assert measure_speed(build_llama().bfloat16(), prompts(), 12).cache_bytes == found.cache_bytes / 2


def test_speeds_are_tokens_over_median_times(monkeypatch):
    # The clock is read before and after each of the calls: 1 + 3 readings of the prompt, 4 steps.
    times = [100.0, 2.0, 9.0, 4.0, 0.5, 50.0, 0.25, 0.25]
    ticks = iter([edge for start, time in zip(count(0, 1000), times, strict=False) for edge in (start, start + time)])
    monkeypatch.setattr(speed, "perf_counter", lambda: next(ticks))
    found = measure_speed(build_llama(), prompts(), 4, 3)
    assert found.prefill == 20 / 4
    assert found.decode == 1 / 0.375
    # Quartiles of 2, 4 and 9 seconds are 3 and 6.5; of .25, .25, .5 and 50 they are .25 and 12.875.
    assert found.prefill_middle == (20 / 6.5, 20 / 3)
    assert found.decode_middle == (1 / 12.875, 1 / 0.25)
    assert next(ticks, None) is None


def test_every_reading_starts_without_a_cache_and_steps_take_one_token():
    model, seen = build_llama(), []

    def note(module, args, kwargs):
        past = cache_in(kwargs)
        seen.append((args[0].shape[1], 0 if past is None else past.get_seq_length()))

    model.register_forward_pre_hook(note, with_kwargs=True)
    measure_speed(model, prompts(), 3, 2)
    assert seen == [(20, 0)] * 3 + [(1, 20), (1, 21), (1, 22)]


def test_a_model_without_a_cache_only_reads():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(VOCABULARY, VOCABULARY)

        def forward(self, ids):
            return SimpleNamespace(logits=self.table(ids))

    said = []
    found = measure_speed(Bare(), prompts(), 4, progress=lambda *report: said.append(report))
    assert found.prefill > 0
    assert (found.decode, found.cache_bytes, found.tokens) == (None, None, None)
    assert said[-1] == ("speed", 10, 10)


class Forgetful(nn.Module):
    """It returns a state that cannot be counted and takes it back, but does nothing with it."""

    def __init__(self, uses_it):
        super().__init__()
        self.table, self.uses_it = nn.Embedding(VOCABULARY, VOCABULARY), uses_it

    def forward(self, ids, memory=None):
        state = self.table(ids).sum(1, keepdim=True) + (memory[0] if memory else 0)
        return SimpleNamespace(logits=state if self.uses_it else self.table(ids), memory=[state])


def test_a_state_that_makes_no_difference_is_an_error():
    assert measure_speed(Forgetful(True), prompts(), 2, 1).cache_bytes == VOCABULARY * 4
    with pytest.raises(JobError, match="go on from what it returned as 'memory'"):
        measure_speed(Forgetful(False), prompts(), 2, 1)


def test_the_mode_is_left_as_it_was():
    model = build_llama().train()
    measure_speed(model, prompts(), 2)
    assert all(module.training for module in model.modules())


def test_progress_counts_calls():
    said = []
    measure_speed(build_llama(), prompts(), 3, 2, lambda *report: said.append(report))
    assert said == [("speed", done, 6) for done in range(1, 7)]


@pytest.mark.parametrize(
    ("seq_len", "context", "plan"),
    [
        (256, None, (256, 32)),
        (256, 512, (256, 32)),
        (512, 512, (480, 32)),
        (256, 64, (32, 32)),
        (20, 40, (20, 20)),
        (64, 40, (20, 20)),
        (2, 2, (1, 1)),
    ],
)
def test_prompt_and_continuation_fit_into_the_context(seq_len, context, plan):
    assert plan_speed(seq_len, context) == plan


def test_a_context_of_one_token_is_refused():
    with pytest.raises(RequestError, match="context of at least 2 tokens to time decoding, got 1; try --no-speed"):
        plan_speed(2, 1)

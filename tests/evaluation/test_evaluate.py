"""From a name and a text to one record; two models on the same rows."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from tokenizers import processors
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

import rectilinear
from rectilinear import Evaluating, JobError, RequestError
from rectilinear.measurement.perplexity import measure_perplexity
from rectilinear.models.settings import Loading
from rectilinear.text.settings import Rows
from tests.conftest import VOCABULARY, build_llama

ROWS, CPU, EIGHT = Rows(max_tokens=1024, seq_len=32), Loading(device="cpu"), Evaluating(batch_size=8)
SIZE = {"evaluating": EIGHT, "rows": ROWS, "loading": CPU}
QUICK = {**SIZE, "evaluating": Evaluating(batch_size=8, speed=False)}
SPEEDS = ("prefill", "decode")


@pytest.fixture(scope="module")
def packed(documents, tiny_tokenizer):
    """The first 32 rows of 32 tokens, packed by hand."""
    ids = [i for text in documents for i in tiny_tokenizer(text)["input_ids"]]
    return torch.tensor(ids[:1024]).view(32, 32)


@pytest.fixture(scope="module")
def documents_of(documents, tiny_tokenizer):
    """Which document each token of these rows is of."""
    ids = [number for number, text in enumerate(documents) for _ in tiny_tokenizer(text)["input_ids"]]
    return torch.tensor(ids[:1024], dtype=torch.int32).view(32, 32)


@pytest.fixture(scope="module")
def other_checkpoint(save_checkpoint):
    """A model of one block fewer and other weights, with the same tokenizer."""
    return save_checkpoint(build_llama(blocks=2, seed=1), "other")


@pytest.fixture(scope="module")
def alone(tiny_checkpoint, text_file):
    return rectilinear.evaluate(tiny_checkpoint, text_file, **SIZE)


@pytest.fixture(scope="module")
def pair(tiny_checkpoint, other_checkpoint, text_file):
    return rectilinear.evaluate(tiny_checkpoint, text_file, against=other_checkpoint, **SIZE)


def without_times(record):
    """Everything in a record, as JSON has it, but what two runs cannot agree on."""
    dumped = record.model_dump(mode="json", by_alias=True)
    for part in (dumped, dumped["against"], dumped["differences"]):
        if part:
            speed = part.pop("tokens_per_second")
            assert all(speed[name] is not None for name in SPEEDS)
    return dumped


def test_what_was_evaluated(alone, tiny_llama, tiny_checkpoint, text_file, packed, documents_of):
    losses = measure_perplexity(tiny_llama, packed, 32, documents=documents_of)
    assert alone.loss == pytest.approx(losses.loss, rel=1e-6)
    assert alone.perplexity == pytest.approx(math.exp(losses.loss), rel=1e-6)
    assert alone.stderr == pytest.approx(losses.stderr, rel=1e-4)
    assert (alone.clusters, alone.clustered_by) == (int(documents_of.max()) + 1, "documents")
    middle, half = (alone.interval.low + alone.interval.high) / 2, (alone.interval.high - alone.interval.low) / 2
    assert middle == pytest.approx(alone.loss)
    assert half == pytest.approx(student(alone.clusters - 1).ppf(0.975) * alone.stderr)
    assert alone.tokens == 32 * 31
    assert alone.parameters == alone.model.parameters == sum(p.numel() for p in tiny_llama.parameters())
    assert alone.model.id == str(tiny_checkpoint)
    assert (alone.model.num_blocks, alone.model.width) == (3, 16)
    assert alone.data.source == str(text_file)
    assert (alone.data.tokens, alone.data.rows, alone.data.seq_len) == (1024, 32, 32)
    assert (alone.environment.device, alone.environment.dtype) == ("cpu", "float32")
    assert alone.tasks == {}
    assert alone.against is alone.differences is None


def test_speed_and_cache(alone):
    assert (alone.settings["prompt_tokens"], alone.settings["new_tokens"]) == (32, 32)  # of a context of 64
    assert alone.cache_bytes == 2 * 3 * 2 * 4 * 64 * 4
    assert min(alone.tokens_per_second.prefill, alone.tokens_per_second.decode) > 0
    for name in SPEEDS:
        slow, fast = getattr(alone.tokens_per_second, f"{name}_middle")
        assert slow <= getattr(alone.tokens_per_second, name) <= fast


def test_without_speed_nothing_is_timed(tiny_checkpoint, text_file, alone, monkeypatch):
    monkeypatch.setattr("rectilinear.evaluation.run.measure_speed", None)
    found = rectilinear.evaluate(tiny_checkpoint, text_file, **QUICK)
    assert found.loss == alone.loss
    assert (found.tokens_per_second.prefill, found.tokens_per_second.decode, found.cache_bytes) == (None, None, None)
    assert found.settings["speed"] is False
    assert "prompt_tokens" not in found.settings


@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
def test_the_batch_size_changes_nothing(batch_size, tiny_checkpoint, text_file, alone):
    found = rectilinear.evaluate(
        tiny_checkpoint, text_file, Evaluating(speed=False, batch_size=batch_size), rows=ROWS, loading=CPU
    )
    assert found.loss == pytest.approx(alone.loss, rel=1e-6)
    assert found.settings["batch_size"] == (32 if batch_size == "auto" else batch_size)


def test_the_other_model_is_evaluated_as_if_alone(pair, other_checkpoint, text_file):
    other = rectilinear.evaluate(other_checkpoint, text_file, **SIZE)
    expected = without_times(other)
    shared = ("model", "environment", "perplexity", "loss", "stderr", "tokens", "parameters", "cache_bytes", "tasks")
    assert {key: without_times(pair)["against"][key] for key in shared} == {key: expected[key] for key in shared}


def test_differences(pair, tiny_llama, packed, documents_of):
    ours, theirs, found = pair, pair.against, pair.differences
    other = build_llama(blocks=2, seed=1)
    losses = [measure_perplexity(model, packed, 32, documents=documents_of) for model in (tiny_llama, other)]
    changes, sizes = (losses[0].documents.sums - losses[1].documents.sums).numpy(), losses[0].documents.sizes.numpy()
    assert found.loss == pytest.approx(changes.sum() / (32 * 31), rel=1e-5)
    spread = np.std(changes - found.loss * sizes, ddof=1) * np.sqrt(len(sizes))
    assert found.loss_stderr == pytest.approx(spread / sizes.sum(), rel=1e-5)
    half = (found.loss_interval.high - found.loss_interval.low) / 2
    assert half == pytest.approx(student(len(sizes) - 1).ppf(0.975) * found.loss_stderr)
    assert found.perplexity_ratio == pytest.approx(ours.perplexity / theirs.perplexity, rel=1e-9)
    assert found.parameters == ours.parameters - theirs.parameters > 0
    assert found.cache_bytes == 3 / 2
    for name in SPEEDS:
        ratio = getattr(ours.tokens_per_second, name) / getattr(theirs.tokens_per_second, name)
        assert getattr(found.tokens_per_second, name) == pytest.approx(ratio)


def test_a_model_against_itself(tiny_checkpoint, text_file):
    found = rectilinear.evaluate(tiny_checkpoint, text_file, against=tiny_checkpoint, **SIZE).differences
    assert (found.loss, found.loss_stderr, found.perplexity_ratio) == (0.0, 0.0, 1.0)
    assert (found.parameters, found.cache_bytes) == (0, 1.0)


def test_text_that_a_checkpoint_was_fitted_on_is_warned_of(exported, load, tiny_checkpoint, text_file, tmp_path):
    fitted = exported("llama", (1,), kind="drop")
    copied, other = tmp_path / "copied.txt", tmp_path / "other.txt"
    copied.write_text(text_file.read_text())
    other.write_text("\n".join(text_file.read_text().split("\n")[2:]))

    def warned(model, text=text_file, max_tokens=2048, **options):
        rows = Rows(max_tokens=max_tokens, seq_len=32)
        return rectilinear.evaluate(model, text, Evaluating(speed=False), rows=rows, loading=CPU, **options).warnings

    rows = f"{fitted} was fitted on these very rows ({text_file}), which flatters it; evaluate it on other text"
    assert warned(fitted) == warned(fitted, copied) == warned(load(fitted, False)) == (rows,)
    assert warned(tiny_checkpoint, against=fitted) == (rows,)
    assert warned(fitted, max_tokens=1024) == (rows.replace("these very rows", "this text, perhaps these rows"),)
    assert warned(fitted, other) == warned(fitted, copied, max_tokens=1024) == ()
    assert warned(tiny_checkpoint) == ()


def test_other_generated_stories_are_other_text(exported, tmp_path):
    plan = json.loads((exported("llama", (1,), kind="drop") / "plan.json").read_text())
    plan["data"]["source"] = "stories"
    shutil.copytree(exported("llama", (1,), kind="drop"), tmp_path / "saved")
    (tmp_path / "saved" / "plan.json").write_text(json.dumps(plan))
    for seed, warnings in ((0, 1), (1, 0)):
        rows = Rows(max_tokens=320, seq_len=32, seed=seed)
        found = rectilinear.evaluate(tmp_path / "saved", "stories", Evaluating(speed=False), rows=rows, loading=CPU)
        assert len(found.warnings) == warnings


def test_modules_are_evaluated_as_they_are(tiny_llama, tiny_tokenizer, text_file, pair):
    other = build_llama(blocks=2, seed=1).train()
    found = rectilinear.evaluate(tiny_llama, text_file, tokenizer=tiny_tokenizer, against=other, **SIZE)
    assert (found.loss, found.against.loss) == (pair.loss, pair.against.loss)
    assert found.differences.loss_stderr == pair.differences.loss_stderr
    assert other.training


def test_a_module_of_one_s_own(tiny_tokenizer, text_file):
    class Uniform(nn.Module):
        def forward(self, ids):
            return SimpleNamespace(logits=torch.zeros(*ids.shape, VOCABULARY))

    found = rectilinear.evaluate(Uniform(), text_file, tokenizer=tiny_tokenizer, against=build_llama(), **SIZE)
    assert found.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert (found.model.id, found.model.num_blocks, found.model.width) == ("Uniform", None, None)
    assert found.tokens_per_second.prefill > 0
    assert (found.tokens_per_second.decode, found.cache_bytes) == (None, None)
    assert found.differences.tokens_per_second.prefill > 0
    assert (found.differences.tokens_per_second.decode, found.differences.cache_bytes) == (None, None)


def test_gpt2_whose_weights_are_tied(save_checkpoint, text_file, packed):
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=64)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    found = rectilinear.evaluate(save_checkpoint(model, "gpt2"), text_file, **SIZE)
    assert found.loss == pytest.approx(measure_perplexity(model, packed).loss, rel=1e-6)
    assert found.cache_bytes == 2 * 2 * 16 * 64 * 4
    assert (found.model.num_blocks, found.model.width) == (2, 16)


def test_prompts_fit_into_the_smaller_context(tiny_checkpoint, save_checkpoint, text_file):
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=40)
    small = save_checkpoint(AutoModelForCausalLM.from_config(config), "small")
    found = rectilinear.evaluate(tiny_checkpoint, text_file, against=small, **SIZE)
    assert (found.settings["prompt_tokens"], found.settings["new_tokens"]) == (20, 20)
    assert found.cache_bytes == 2 * 3 * 2 * 4 * 40 * 4
    assert found.against.cache_bytes == 2 * 2 * 16 * 40 * 4


def test_different_tokenizers_are_refused(tiny_checkpoint, tiny_tokenizer, text_file, tmp_path, monkeypatch):
    build_llama().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    backend = AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    monkeypatch.setattr("rectilinear.models.origin.load_model", None)  # refused before weights are loaded
    with pytest.raises(RequestError, match="perplexities over different tokens cannot be compared") as refused:
        rectilinear.evaluate(tiny_checkpoint, text_file, against=tmp_path, **SIZE)
    assert str(tmp_path) in str(refused.value)


def test_a_checkpoint_without_a_head_is_refused(tiny_llama, tiny_tokenizer, text_file, tmp_path):
    tiny_llama.model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    rectilinear.measure(tmp_path, text_file, rows=ROWS, loading=CPU)
    with pytest.raises(RequestError, match=r"lm_head\.weight among them"):
        rectilinear.evaluate(tmp_path, text_file, **SIZE)


def test_requests_that_cannot_be_met(tiny_checkpoint, tiny_llama, tiny_tokenizer, save_checkpoint, text_file):
    def refused(match, model=tiny_checkpoint, **options):
        with pytest.raises(RequestError, match=match):
            rectilinear.evaluate(model, text_file, **{**SIZE, **options})

    refused("rows of at least 2 tokens, of which 1 is predicted, got `seq_len=1`", rows=Rows(seq_len=1))
    with pytest.raises(RequestError, match="expected `batch_size`"):
        Evaluating(batch_size=0)
    refused("no model at", against="./none")
    refused("expected tokenizer=", against=tiny_llama.model.__class__(tiny_llama.config))
    small = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=16)
    refused("context of 16 tokens", against=save_checkpoint(AutoModelForCausalLM.from_config(small), "short"))
    refused("vocabulary of 20", against=save_checkpoint(build_llama(vocabulary=20), "few"))
    refused(r"returns \.logits, got LlamaModel", tiny_llama.model, tokenizer=tiny_tokenizer)


def test_weights_that_are_not_finite(text_file, tiny_tokenizer, tiny_llama):
    broken = build_llama()
    with torch.no_grad():
        broken.lm_head.weight[5, 5] = float("nan")
    for model, other in ((broken, None), (tiny_llama, broken)):
        with pytest.raises(JobError, match="expected a finite loss, got nan at row 0"):
            rectilinear.evaluate(model, text_file, tokenizer=tiny_tokenizer, against=other, **SIZE)


def test_memory_that_does_not_suffice(tiny_checkpoint, text_file, monkeypatch):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("rectilinear.evaluation.run.measure_perplexity", exhausted)
    with pytest.raises(JobError, match="out of memory; try a smaller `batch_size`"):
        rectilinear.evaluate(tiny_checkpoint, text_file, **SIZE)


def test_progress_tells_the_models_apart(tiny_checkpoint, other_checkpoint, text_file):
    said = []
    rectilinear.evaluate(
        tiny_checkpoint, text_file, against=other_checkpoint, progress=lambda *report: said.append(report), **SIZE
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in said if not stage.startswith("predicting: ")))
    assert stages == ["rows (against)", "speed (against)", "rows", "speed"]
    for stage in stages:
        last = [report for report in said if report[0] == stage][-1]
        assert last[1] == last[2]


def test_several_models_are_evaluated_as_if_alone(tiny_checkpoint, other_checkpoint, text_file, alone, pair):
    models = [tiny_checkpoint, other_checkpoint]
    found = [*rectilinear.evaluate_all(models, text_file, **SIZE)]
    assert [evaluation.model.id for evaluation in found] == [str(model) for model in models]
    assert without_times(found[0]) == without_times(alone)
    both = [*rectilinear.evaluate_all(models, text_file, against=other_checkpoint, **SIZE)]
    assert without_times(both[0]) == without_times(pair)
    assert both[1].differences.loss == 0


def test_models_come_one_by_one_and_the_other_one_runs_once(tiny_checkpoint, other_checkpoint, text_file):
    said = []
    running = rectilinear.evaluate_all(
        [other_checkpoint, tiny_checkpoint], text_file, against=tiny_checkpoint, **QUICK,
        progress=lambda stage, done, total: stage.startswith("predicting: ") or said.append(stage),
    )  # fmt: skip
    next(running)
    assert list(dict.fromkeys(said)) == ["rows (against)", "rows (1 of 2)"]
    next(running)
    assert list(dict.fromkeys(said)) == ["rows (against)", "rows (1 of 2)", "rows (2 of 2)"]


def test_all_models_are_looked_at_before_the_first_one_runs(tiny_checkpoint, text_file, monkeypatch):
    monkeypatch.setattr("rectilinear.models.origin.load_model", None)
    with pytest.raises(RequestError, match="no model at"):
        rectilinear.evaluate_all([tiny_checkpoint, "./none"], text_file, **SIZE)  # before it is iterated over

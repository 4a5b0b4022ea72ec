"""Fine-tuning learns, can be repeated and resumed, and measures what `measure` measures."""

import json
import statistics

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, RwkvConfig

import rectilinear
from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.profile import LinearityRecord
from rectilinear.models.load import load_classifier
from rectilinear.models.settings import Loading
from rectilinear.text.settings import Rows
from rectilinear.text.tasks import read_task
from rectilinear.training import finetune as module
from rectilinear.training.classification import Collator, Example, score_texts
from rectilinear.training.results import BlockLinearity, Linearities, Scores, change_of, summarize
from rectilinear.training.settings import Profiling, Tuning
from tests.conftest import without_time
from tests.families import TINY, VOCABULARY, build
from tests.superglue import write_lines, write_superglue

#: Quick, and enough to learn what is planted.
LEARN = {"seeds": 1, "max_steps": 60, "batch_size": 8, "learning_rate": 1e-2, "dtype": "float32", "device": "cpu"}
ROWS = {"seq_len": 48, "max_tokens": 480}
BRIEF = {**LEARN, **ROWS, "max_steps": 3}


def finetune(model, task, data, *, out=None, resume=False, overwrite=False, **options):
    """A fine-tuning by one set of options."""
    parts = [
        {name: value for name, value in options.items() if name in kind.model_fields} for kind in (Tuning, Profiling)
    ]
    assert len(options) == sum(map(len, parts))
    tuning, profiling = Tuning(data=str(data), **parts[0]), Profiling(**parts[1])
    kept = {"out": out, "resume": resume, "overwrite": overwrite}
    return rectilinear.finetune(model, task, tuning, profiling, **kept, progress=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_superglue(tmp_path_factory.mktemp("superglue"))


@pytest.fixture(scope="module")
def learnt(tiny_checkpoint, data, tmp_path_factory):
    """What came of learning the planted CB with two seeds, and the folder of it."""
    out = tmp_path_factory.mktemp("finetuned") / "out"
    options = {**LEARN, **ROWS, "seeds": 2}
    return finetune(tiny_checkpoint, "cb", data, out=out, save_models=True, **options), out


def losses(run):
    return [entry["loss"] for entry in run.log if "loss" in entry]


def test_learns_what_is_planted(learnt):
    result, _ = learnt
    for run in result.runs:
        assert run.metrics["accuracy"].value > 0.9
        assert run.metrics["accuracy"].baseline < 0.6
        assert run.metrics["macro_f1"].value > 0.9
        assert losses(run)[-1] < 0.5 * losses(run)[0]
        assert run.steps == 60
    assert result.runs[0].after.sha256 != result.runs[1].after.sha256


@pytest.mark.parametrize("task", ["copa", "reward"])
def test_learns_choices_and_preferences(task, tiny_checkpoint, data):
    source = data / "pairs.jsonl" if task == "reward" else data
    result = finetune(tiny_checkpoint, task, source, **LEARN, **ROWS | {"seq_len": 24})
    [run] = result.runs
    assert run.metrics["accuracy"].value > 0.9
    assert run.metrics["accuracy"].baseline < 0.7
    if task == "reward":
        assert run.metrics["accuracy"].baseline == 0.5
        assert losses(run)[-1] < 0.1 < losses(run)[0]


def test_a_saved_model_is_a_plain_classifier_with_these_metrics(learnt, data):
    result, out = learnt
    assert sorted(path.name for path in out.iterdir()) == ["finetuning.json", "seed-0", "seed-1"]
    for run in result.runs:
        model = AutoModelForSequenceClassification.from_pretrained(out / f"seed-{run.seed}").eval()
        tokenizer = AutoTokenizer.from_pretrained(out / f"seed-{run.seed}")
        assert model.config.id2label == {0: "entailment", 1: "contradiction", 2: "neutral"}
        # The tokenizer had no padding: the end of a text has become it.
        assert tokenizer.pad_token_id == model.config.pad_token_id == tokenizer.eos_token_id
        assert model.config.use_cache
        lines = [json.loads(line) for line in (data / "CB" / "val.jsonl").read_text().splitlines()]
        texts = [f"{line['premise']}\n{line['hypothesis']}" for line in lines]
        with torch.no_grad():
            given = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(1)
        right = [model.config.id2label[int(label)] == line["label"] for label, line in zip(given, lines, strict=True)]
        assert run.metrics["accuracy"].value == pytest.approx(statistics.fmean(right))


def test_before_and_after_are_what_measure_gives(learnt, tiny_checkpoint, data, tmp_path):
    result, out = learnt
    texts = [text for question in read_task("cb", data).validation for text in question.texts]
    source = tmp_path / "validation.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"rows": Rows(**ROWS), "loading": Loading(dtype="float32", device="cpu")}
    for found, folder in ((result.before, tiny_checkpoint), (result.runs[1].after, out / "seed-1")):
        profile = rectilinear.measure(folder, source, **options)
        assert result.text.fingerprint == profile.data.fingerprint
        assert [(block.index, block.linearity, block.update_linearity) for block in found.blocks] == [
            (block.index, block.linearity, block.update_linearity) for block in profile.blocks
        ]
        mean = statistics.fmean(block.update_linearity.held_out for block in profile.blocks)
        assert found.update_linearity.held_out == pytest.approx(mean)
    assert result.model == rectilinear.measure(tiny_checkpoint, source, **options).model


def test_measures_on_another_text(tiny_checkpoint, text_file, data):
    result = finetune(tiny_checkpoint, "cb", data, text=str(text_file), **BRIEF)
    profile = rectilinear.measure(
        tiny_checkpoint, text_file, loading=Loading(dtype="float32", device="cpu"), rows=Rows(**ROWS)
    )
    assert result.text == profile.data
    assert result.before.blocks[2].linearity == profile.blocks[2].linearity


def test_changes_and_summary_by_hand(learnt):
    result, _ = learnt
    changes = []
    for run in result.runs:
        pairs = zip(result.before.blocks, run.after.blocks, strict=True)
        changes.append(
            statistics.fmean(two.update_linearity.in_sample - one.update_linearity.in_sample for one, two in pairs)
        )
        assert run.change.update_linearity.in_sample == pytest.approx(changes[-1])
    spread = result.summary.update_linearity.in_sample
    assert (spread.mean, spread.n) == (pytest.approx(statistics.fmean(changes)), 2)
    assert spread.deviation == pytest.approx(abs(changes[0] - changes[1]) / 2**0.5)
    assert result.summary.metrics["accuracy"].n == 2


def test_seeds_are_counted_from_the_one_given(tiny_checkpoint, data):
    both = finetune(tiny_checkpoint, "cb", data, **BRIEF | {"seeds": 2})
    second = finetune(tiny_checkpoint, "cb", data, **BRIEF, seed=1)
    assert [run.seed for run in second.runs] == [1]
    assert losses(second.runs[0]) == losses(both.runs[1])


def test_one_seed_has_no_deviation(tiny_checkpoint, data):
    result = finetune(tiny_checkpoint, "cb", data, **BRIEF)
    for spread in (result.summary.update_linearity.held_out, result.summary.metrics["macro_f1"]):
        assert (spread.deviation, spread.n) == (None, 1)
    assert '"deviation": null' in result.to_json()


def test_scores_that_are_not_there_are_left_out():
    def linearities(*scores):
        blocks = [
            BlockLinearity(
                index=index,
                linearity=LinearityRecord(in_sample=1, adjusted=None, held_out=None, stderr=None),
                update_linearity=LinearityRecord(in_sample=score, adjusted=None, held_out=None, stderr=None),
            )
            for index, score in enumerate(scores)
        ]
        nothing = Scores(in_sample=None, held_out=None)
        return Linearities(sha256="", linearity=nothing, update_linearity=nothing, blocks=blocks, warnings=())

    change = change_of(linearities(0.5, None, 0.2), linearities(0.75, 0.1, 0.1))
    assert change.update_linearity.in_sample == pytest.approx((0.25 - 0.1) / 2)
    assert change.update_linearity.held_out is None
    assert summarize([]).update_linearity.held_out.model_dump() == {"mean": None, "deviation": None, "n": 0}


def test_the_same_seed_gives_the_same_result_and_another_does_not(tiny_checkpoint, data):
    first, again = (finetune(tiny_checkpoint, "cb", data, **BRIEF | {"seeds": 2}) for _ in range(2))
    assert without_time(first) == without_time(again)
    assert losses(first.runs[0]) != losses(first.runs[1])


def test_a_penalty_of_no_strength_changes_no_bit(tiny_checkpoint, data):
    def train(**options):
        return finetune(tiny_checkpoint, "cb", data, **BRIEF, **options).runs[0]

    none, idle, penalized = train(), train(regularizer="mse", strength=0), train(regularizer="mse", strength=1)
    assert idle.after.sha256 == none.after.sha256 != penalized.after.sha256
    assert losses(idle) == losses(none)
    assert not any("penalty" in entry for entry in (*none.log, *idle.log))
    assert any(entry.get("penalty", 0) > 0 for entry in penalized.log)


@pytest.mark.parametrize("family", TINY)
def test_neither_padding_nor_company_changes_a_text(family, tmp_path):
    build(family).save_pretrained(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = load_classifier(tmp_path, ("a", "b", "c"), padding=1).eval()
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in (3, 11, 6, 2, 9)]
    alone = score_texts(model, texts, 1, batch_size=1)
    scale = float(alone.abs().max())
    for rows in (2, 5):
        assert float((score_texts(model, texts, 1, rows) - alone).abs().max()) < 1e-5 * scale
    labels = (2, 0, 1, 1, 0)
    batch = Collator(1)(Example((text,), (label,)) for text, label in zip(texts, labels, strict=True))
    with torch.no_grad():
        loss = model(**batch).loss
    assert float(loss) == pytest.approx(float(cross_entropy(alone, torch.tensor(labels))), rel=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_neither_padding_nor_company_changes_a_penalty(kind, tmp_path):
    build("llama").save_pretrained(tmp_path)
    model = load_classifier(tmp_path, ("a", "b"), padding=1)
    examples = [Example((torch.arange(3, 3 + length),), (1,)) for length in (3, 9, 6)]
    regularizer = rectilinear.Regularizer(model, kind, 0.5)

    def loss(*batch):
        inputs = Collator(1)(batch)
        return regularizer(model(**inputs), inputs["labels"]).item()

    alone = [loss(example) for example in examples]
    assert loss(*examples) == pytest.approx(statistics.fmean(alone), rel=1e-5)


def test_padding_on_the_left_gives_the_same_where_positions_are_relative(learnt):
    _, out = learnt
    model = AutoModelForSequenceClassification.from_pretrained(out / "seed-0").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "seed-0")
    texts = ["The cat.", "It was a dog, and it was lost."]
    with torch.no_grad():
        sides = [
            model(**tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")).logits
            for side in ("left", "right")
        ]
    assert tokenizer.padding_side == "right"
    assert float((sides[0] - sides[1]).abs().max()) < 1e-5 * float(sides[0].abs().max())


def test_goes_on_with_the_seeds_that_are_done(tiny_checkpoint, data, text_file, tmp_path, monkeypatch):
    out, options = tmp_path / "out", {**BRIEF, "seeds": 3}
    run_seed, trained = module._run_seed, []

    def stops(*arguments):
        trained.append(arguments[2])
        if len(trained) == 2:
            raise JobError("seed 1: stopped")
        return run_seed(*arguments)

    monkeypatch.setattr(module, "_run_seed", stops)
    with pytest.raises(JobError, match="seed 1: stopped"):
        finetune(tiny_checkpoint, "cb", data, out=out, **options)
    assert [path.name for path in out.iterdir()] == ["seed-0.json"]
    assert [run.seed for run in rectilinear.Finetuning.load(out / "seed-0.json").runs] == [0]

    with pytest.raises(RequestError, match="is not empty; try `resume`"):
        finetune(tiny_checkpoint, "cb", data, out=out, **options)
    with pytest.raises(RequestError, match=r"another \(learning_rate 0.01 -> 0.02\)"):
        finetune(tiny_checkpoint, "cb", data, out=out, resume=True, **options | {"learning_rate": 0.02})
    with pytest.raises(RequestError, match=r"another \(rows .*, text None -> "):
        finetune(tiny_checkpoint, "cb", data, out=out, resume=True, text=str(text_file), **options)
    with pytest.raises(RequestError, match=r"another \(.*task 'cb' -> 'rte'"):
        finetune(tiny_checkpoint, "rte", data, out=out, resume=True, **options)
    assert trained == [0, 1]

    resumed = finetune(tiny_checkpoint, "cb", data, out=out, resume=True, **options)
    assert trained == [0, 1, 1, 2]
    assert [path.name for path in out.iterdir()] == ["finetuning.json"]
    assert without_time(resumed) == without_time(rectilinear.Finetuning.load(out))
    # All are done: nothing is trained; of other seeds only those that are missing.
    finetune(tiny_checkpoint, "cb", data, out=out, resume=True, **options)
    assert len(trained) == 4
    whole = finetune(tiny_checkpoint, "cb", data, **options)
    assert without_time(whole) == without_time(resumed)


def test_seeds_whose_models_are_missing_are_repeated(tiny_checkpoint, data, tmp_path):
    options = {**BRIEF, "out": tmp_path / "out"}
    first = finetune(tiny_checkpoint, "cb", data, **options)
    second = finetune(tiny_checkpoint, "cb", data, resume=True, save_models=True, **options)
    assert (tmp_path / "out" / "seed-0" / "config.json").exists()
    assert without_time(first) == without_time(second)


def test_overwriting_begins_anew(tiny_checkpoint, data, tmp_path):
    out = tmp_path / "out"
    (out / "seed-7").mkdir(parents=True)
    for name in ("seed-8.json", "finetuning.json", "notes.txt"):
        (out / name).write_text("old")
    finetune(tiny_checkpoint, "cb", data, out=out, overwrite=True, **BRIEF)
    assert sorted(path.name for path in out.iterdir()) == ["finetuning.json", "notes.txt"]
    assert rectilinear.Finetuning.load(out).task == "cb"


def test_a_loss_that_is_not_finite_keeps_the_seeds_before(tiny_checkpoint, data, tmp_path, monkeypatch):
    train = module._train

    def diverges(job, seed, progress):
        if seed:
            monkeypatch.setattr(
                module, "bradley_terry", lambda outputs, labels, items: outputs.logits.sum() * float("nan")
            )
        return train(job, seed, progress)

    monkeypatch.setattr(module, "_train", diverges)
    with pytest.raises(JobError, match=r"seed 1: expected a finite loss, got nan at step 1; .* `learning_rate`"):
        finetune(
            tiny_checkpoint, "reward", data / "pairs.jsonl", out=tmp_path / "out", **BRIEF | {"seeds": 2, "seq_len": 24}
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["seed-0.json"]


def test_says_what_was_cut(tiny_checkpoint, data):
    result = finetune(tiny_checkpoint, "cb", data, **BRIEF | {"seq_len": 24})
    assert result.data.cut > 0
    says = f"texts longer than 24 tokens: {result.data.cut} of 72, which lost their beginning; the longest has "
    assert any(warning.startswith(says) for warning in result.warnings)


def test_max_examples(tiny_checkpoint, data, text_file):
    result = finetune(tiny_checkpoint, "copa", data, max_examples=1, text=str(text_file), **BRIEF)
    assert (result.data.train, result.data.validation) == (1, 1)
    assert result.runs[0].metrics["accuracy"].stderr is None
    [folds, warning] = result.warnings
    assert "documents, fewer than 5 for each of 4 folds" in folds
    assert warning.startswith("all questions to train on have the same answer")


def test_steps_are_those_of_the_epochs(tiny_checkpoint, data):
    options = {**BRIEF, "max_steps": None, "max_examples": 17, "epochs": 2.0}
    assert finetune(tiny_checkpoint, "cb", data, **options).runs[0].steps == 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seeds": 0}, "expected `seeds` to be greater than 0, got 0"),
        ({"epochs": 0}, "expected `epochs` to be greater than 0, got 0"),
        ({"epochs": 1}, "expected no `epochs` with `max_steps`"),
        ({"learning_rate": float("nan")}, "expected `learning_rate` to be a finite number, got nan"),
        ({"batch_size": 0}, "expected `batch_size` to be greater than 0, got 0"),
        ({"regularizer": "l2"}, "expected `regularizer` to be 'none', 'mse' or 'cosine', got 'l2'"),
        ({"strength": -1}, "expected `strength` to be greater than or equal to 0, got -1"),
        ({"penalize_embedding": False}, "expected no `penalize_embedding` without `regularizer`"),
        ({"column": "story"}, "expected no `column` without `text`"),
        ({"dtype": "float16"}, "got 'float16'"),
        ({"device": "gpu"}, "expected `device` to be 'auto' or 'cpu', got 'gpu'"),
        ({"seq_len": 65}, "context of 64 tokens, got rows of 65; try `seq_len=64`"),
        ({"folds": 0}, "expected `folds` to be greater than 0, got 0"),
        ({"resume": True}, "expected `out` with `resume`, got none"),
        ({"save_models": True}, "expected `out` with `save_models`, got none"),
        ({"max_tokens": 10}, "expected `max_tokens` >= `seq_len`"),
    ],
)
def test_refuses(options, says, tiny_checkpoint, data):
    with pytest.raises(RequestError) as error:
        finetune(tiny_checkpoint, "cb", data, **BRIEF | options)
    assert says in str(error.value)


def test_refuses_what_cannot_be_padded_or_classified(tiny_llama, tiny_tokenizer, data, tmp_path, save_checkpoint):
    bare = save_checkpoint(tiny_llama, "bare")
    PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer).save_pretrained(bare)
    with pytest.raises(RequestError, match="expected a tokenizer with a token for padding or for the end of a text"):
        finetune(bare, "cb", data, **BRIEF)
    RwkvConfig().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="expected a model transformers has a classifier for, got rwkv"):
        finetune(tmp_path, "cb", data, **BRIEF)


def test_refuses_a_text_without_a_token(tiny_llama, data, tmp_path, save_checkpoint):
    plain = save_checkpoint(tiny_llama, "plain")
    # This one puts no special tokens around a text.
    backend = json.loads((plain / "tokenizer.json").read_text()) | {"post_processor": None}
    (plain / "tokenizer.json").write_text(json.dumps(backend))
    pairs = [{"chosen": "", "rejected": "The cat."}, {"chosen": "The cat.", "rejected": "The dog."}]
    with pytest.raises(RequestError, match="expected texts of at least one token, got an empty one"):
        finetune(plain, "reward", write_lines(tmp_path / "pairs.jsonl", pairs), **BRIEF)


def test_a_checkpoint_without_its_weights(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"model.layers.1.mlp.up_proj.weight among them"):
        load_classifier(tmp_path, ("a", "b"), 1)


@pytest.mark.slow
def test_a_trained_model_on_the_real_files(shared):
    result = finetune(
        shared / "models" / "stories260K", "cb", shared / "data" / "superglue",
        seeds=2, max_steps=6, seq_len=256, max_tokens=20_000, dtype="float32", device="cpu",
    )  # fmt: skip
    assert (result.data.train, result.data.validation) == (250, 56)
    assert 0 < result.data.cut < 306
    assert result.runs[0].metrics["accuracy"].baseline == 0.5
    assert all(run.steps == 6 and run.change.update_linearity.held_out != 0 for run in result.runs)

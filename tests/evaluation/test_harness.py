"""Tasks: the harness's own scores, on data that are files, whatever the tokenizer, the batch or the cache."""

import copy
import json
import math
import random
from functools import cache
from types import SimpleNamespace

import numpy
import pytest
import torch
from datasets import Dataset
from lm_eval import evaluator
from lm_eval.api.metrics import perplexity, weighted_perplexity
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from scipy.stats import norm
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

import rectilinear
from rectilinear import Evaluating, JobError, RequestError
from rectilinear.evaluation import task_set
from rectilinear.evaluation.decoder import HarnessDecoder
from rectilinear.evaluation.harness import _log_perplexity, _passages, run_tasks
from rectilinear.evaluation.task_set import COLUMNS
from tests.conftest import build_llama
from tests.superglue import ANSWERS, CLAIMS, write_lines, write_superglue

LOCAL = ("boolq", "cb", "copa", "multirc", "sglue_rte", "wic", "wsc")
FOLDERS = dict(zip(LOCAL, ("BoolQ", "CB", "COPA", "MultiRC", "RTE", "WiC", "WSC"), strict=True))


def load_tasks(names, data=None, **options):
    return task_set.load_tasks(Evaluating(tasks=names, data=data, **options))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_superglue(tmp_path_factory.mktemp("superglue"), train=6, validation=14)


@pytest.fixture(scope="module", autouse=True)
def _few_resamples():
    """The F1 of CB takes milliseconds for each of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rectilinear.evaluation.bootstrap.RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def model():
    """Of a context that the prompts fit in."""
    made = build_llama(seed=3)
    made.config.max_position_embeddings = 512
    return made


@pytest.fixture(scope="module")
def beginning(tiny_tokenizer):
    """A tokenizer that begins texts, and does not end them."""
    made = copy.deepcopy(tiny_tokenizer)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


@pytest.fixture(scope="module")
def scored(model, beginning, data):
    return run_tasks(model, beginning, load_tasks(LOCAL, data), 4)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def as_on_the_hub(task, folder, part="val"):
    """What the Hub has of a task, from its files."""
    rows = lines(folder / FOLDERS[task] / f"{part}.jsonl")
    if task == "multirc":
        return [
            {"paragraph": r["passage"]["text"], "question": q["question"], "answer": a["text"], "label": a["label"]}
            for r in rows
            for q in r["passage"]["questions"]
            for a in q["answers"]
        ]
    if task == "wsc":
        return [{"text": r["text"], **r["target"], "label": int(r["label"])} for r in rows]
    values = ANSWERS[{"sglue_rte": "rte"}.get(task, task)]
    return [{**r, "label": values.index(r["label"])} for r in rows]


@cache
def tasks_of_the_harness():
    """Its index of them, which takes seconds to read; not the one that the package has, which it might change."""
    return TaskManager()


def run_the_harness(model, tokenizer, tasks, rows_of, part="results", examples_of=None, **options):
    """The harness by itself, with the Hub's rows where it would download them."""
    names = {"rte": "sglue_rte", "wsc.fixed": "wsc", "ARC-Easy": "arc_easy", "default": "lambada_openai"}

    def load(path, name, **_):
        rows, examples = (Dataset.from_list(of(names.get(name, name))) for of in (rows_of, examples_of or rows_of))
        return {"train": examples, "validation": rows, "test": rows}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lm_eval.api.task.datasets.load_dataset", load)
        patched.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip for all that is installed
        decoder = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=2)
        options = {"task_manager": tasks_of_the_harness(), "bootstrap_iters": 0, **options}
        return evaluator.simple_evaluate(decoder, tasks=[*tasks], **options)[part]


def values_of(found):
    """By task, each metric and its value."""
    return {name: {key: metric.value for key, metric in task.metrics.items()} for name, task in found.tasks.items()}


def values_of_the_harness(results):
    metrics = {name: {k: v for k, v in task.items() if k.endswith(",none")} for name, task in results.items()}
    return {
        name: {key.removesuffix(",none"): value for key, value in task.items() if "stderr" not in key}
        for name, task in metrics.items()
    }


def test_scores_are_those_of_the_harness_by_itself(scored, model, beginning, data):
    own = run_the_harness(model, beginning, LOCAL, lambda task: as_on_the_hub(task, data))
    assert values_of(scored) == values_of_the_harness(own)
    assert set(scored.tasks["cb"].metrics) == {"acc", "f1"}
    assert len({record.metrics["acc"].value for record in scored.tasks.values()}) > 3


@pytest.fixture(scope="module")
def trained(shared):
    folder = shared / "models" / "stories260K"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
def test_a_trained_model_on_superglue(trained, shared):
    files = shared / "data" / "superglue"
    found = run_tasks(*trained, load_tasks(LOCAL, files, limit=60), 16)
    own = run_the_harness(*trained, LOCAL, lambda task: as_on_the_hub(task, files), limit=60)
    assert values_of(found) == values_of_the_harness(own)


@pytest.mark.slow
def test_a_trained_model_on_arc_and_lambada(trained, shared):
    files = shared / "data" / "eval"

    def rows_of(task):
        found = lines(files / f"{task}.jsonl")
        if task == "lambada_openai":
            return [{"text": line["context"] + " " + line["continuation"]} for line in found]
        return [
            {
                "question": line["query"][len("Question: ") :],
                "choices": {"text": line["choices"], "label": [*"ABCDE"[: len(line["choices"])]]},
                "answerKey": "ABCDE"[line["gold"]],
            }
            for line in found
        ]

    tasks = ("arc_easy", "lambada_openai")
    found = run_tasks(*trained, load_tasks(tasks, files, limit=150), 16)
    own = run_the_harness(*trained, tasks, rows_of, limit=150)
    ours, theirs = values_of(found), values_of_the_harness(own)
    assert ours["lambada_openai"].pop("perplexity") == pytest.approx(
        theirs["lambada_openai"].pop("perplexity"), rel=1e-4
    )
    assert ours == theirs
    assert set(ours["arc_easy"]) == {"acc", "acc_norm"}


def log_likelihood(model, tokenizer, context, continuation):
    first, whole = tokenizer(context)["input_ids"], tokenizer(context + continuation)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(logits[place - 1, whole[place]].item() for place in range(len(first), len(whole)))


def test_prompts_are_the_ones_that_everybody_uses(scored, model, beginning, data):
    """By hand, for two tasks: what is asked, and what is likelier."""
    right = []
    for line in lines(data / "BoolQ" / "val.jsonl"):
        prompt = f"{line['passage']}\nQuestion: {line['question']}?\nAnswer:"
        no, yes = (log_likelihood(model, beginning, prompt, answer) for answer in (" no", " yes"))
        right.append((yes > no) == line["label"])
    assert scored.tasks["boolq"].metrics["acc"].value == pytest.approx(sum(right) / 14)
    right = []
    for line in lines(data / "COPA" / "val.jsonl"):
        prompt = line["premise"][:-1] + (" because" if line["question"] == "cause" else " therefore")
        choices = (line[name][0].lower() + line[name][1:] for name in ("choice1", "choice2"))
        scores = [log_likelihood(model, beginning, prompt, f"  {choice}") for choice in choices]
        right.append(scores.index(max(scores)) == line["label"])
    assert scored.tasks["copa"].metrics["acc"].value == pytest.approx(sum(right) / 14)


def test_a_constant_answer(scored, data):
    labels = [line["label"] for line in lines(data / "CB" / "val.jsonl")]
    share = max(map(labels.count, CLAIMS)) / 14
    metrics = scored.tasks["cb"].metrics
    assert metrics["acc"].constant == pytest.approx(share)
    assert metrics["f1"].constant == pytest.approx(2 * share / (1 + share) / 3)  # two labels are never said
    assert scored.tasks["boolq"].metrics["acc"].constant == pytest.approx(0.5)
    assert scored.tasks["multirc"].metrics["acc"].constant == pytest.approx(2 / 3)


def test_errors_are_over_documents(scored):
    value, stderr = (getattr(scored.tasks["wic"].metrics["acc"], name) for name in ("value", "stderr"))
    assert stderr == pytest.approx((value * (1 - value) / 13) ** 0.5)
    assert scored.tasks["cb"].metrics["f1"].stderr > 0


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_batch_changes_nothing(batch_size, scored, model, beginning, data):
    again = run_tasks(model, beginning, load_tasks(LOCAL, data), batch_size)
    assert {**again.tasks} == {**scored.tasks}
    assert {**again.items} == {**scored.items}


def test_a_tokenizer_that_ends_texts_does_not_end_prompts(scored, model, tiny_tokenizer, data):
    assert {**run_tasks(model, tiny_tokenizer, load_tasks(LOCAL, data), 4).tasks} == {**scored.tasks}


CHAT = (
    "{% for message in messages %}{{ '<s>' if loop.first }}"
    "{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def chatting(beginning):
    made = copy.deepcopy(beginning)
    made.chat_template = CHAT
    return made


@pytest.mark.slow
@pytest.mark.parametrize("instruction", [None, "It was old."])
def test_chats_are_those_of_the_harness(instruction, model, chatting, data):
    asked = load_tasks(LOCAL, data, apply_chat_template=True, system_instruction=instruction)
    found = run_tasks(model, chatting, asked, 4)
    options = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": instruction}
    expected = run_the_harness(model, chatting, LOCAL, lambda task: as_on_the_hub(task, data), **options)
    assert values_of(found) == values_of_the_harness(expected)
    [prompt, *_] = asked.tasks["boolq"].instances[0].args
    begun = f"<s>system: {instruction}\nuser: It was 0." if instruction else "<s>user: It was 0."
    assert prompt.startswith(begun)
    assert prompt.endswith("\nassistant: ")


def test_chats_that_begin_by_themselves_lose_no_token(model, tiny_tokenizer):
    """A tokenizer that ends texts adds nothing to those that begin as chats do, and so nothing is taken off them."""
    decoder = HarnessDecoder(model, copy.deepcopy(tiny_tokenizer), 4, ends_texts=True)
    chat, text = "<s>It was old.", "It was old."
    plain = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert decoder.tok_encode(chat) == tiny_tokenizer(chat, add_special_tokens=False)["input_ids"]
    assert decoder.tok_encode(chat)[-1] == decoder.tok_encode(text)[-1] == plain[-1]
    batches = [decoder.tok_batch_encode([prompt, prompt])[0] for prompt in (chat, text)]
    assert [batch[0, -1].item() for batch in batches] == [plain[-1]] * 2


def test_a_tokenizer_without_a_chat_template(model, beginning, data):
    asked = Evaluating(tasks=["copa"], data=data, apply_chat_template=True)
    with pytest.raises(RequestError, match="expected a tokenizer with a chat template"):
        rectilinear.evaluate(model, None, asked, tokenizer=beginning)


def test_examples_come_from_the_training_file(model, beginning, data):
    asked = load_tasks(["boolq"], data, num_fewshot=2, limit=5)
    record = run_tasks(model, beginning, asked, 4).tasks["boolq"]
    assert (record.n, record.num_fewshot) == (5, 2)
    prompt = asked.tasks["boolq"].instances[0].args[0]
    assert prompt.count("Question:") == 3
    trained = [line["passage"] for line in lines(data / "BoolQ" / "train.jsonl")]
    assert sum(prompt.count(f"{passage}\n") for passage in trained) >= 2


@pytest.mark.slow
def test_a_linearized_checkpoint_with_and_without_caches_and_batches(linearized, beginning, data):
    """Of filters, which keep a state of their own: choices, and what is written."""
    model = copy.deepcopy(linearized("llama", (1,), kind="filter").model)
    model.config.max_position_embeddings = 512
    runs = [run_tasks(model, beginning, load_tasks(LOCAL, data), size) for size in (1, 16)]
    assert {**runs[0].items} == {**runs[1].items}
    options = {"max_gen_toks": 8, "until": ["\n"], "do_sample": False}
    prompts = ["The cat saw", "It was a dog and the old man fed a", "Who"]
    requests = [SimpleNamespace(args=(prompt, options), task_name="none") for prompt in prompts]
    written = [
        HarnessDecoder(model, copy.deepcopy(beginning), size, ends_texts=False).generate_until(requests)
        for size in (1, 16)
    ]
    assert written[0] == written[1]
    assert written[0] == [uncached(model, beginning, prompt, 8) for prompt in prompts]
    assert any(written[0])
    plain = HarnessDecoder(model, copy.deepcopy(beginning), 4, ends_texts=False)
    plain.logits_cache = False
    pairs = [
        SimpleNamespace(args=(prompt, f" {end}"), task_name="x") for prompt in prompts for end in ("a", "it", "he")
    ]
    cached = HarnessDecoder(model, copy.deepcopy(beginning), 4, ends_texts=False)
    for one, two in zip(plain.loglikelihood(pairs), cached.loglikelihood(pairs), strict=True):
        assert one[0] == pytest.approx(two[0], rel=1e-5)
        assert one[1] == two[1]


def uncached(model, tokenizer, prompt, tokens):
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(tokens):
            best = model(ids, use_cache=False).logits[0, -1].argmax()
            if best == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, best.view(1, 1)], 1)
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True).split("\n")[0]


def test_what_is_cut_is_said(tiny_llama, beginning, data):
    found = run_tasks(tiny_llama, beginning, load_tasks(["boolq", "wic"], data), 4)  # a context of 64
    assert found.tasks["wic"].cut > 0
    assert found.warnings[-1].startswith(f"wic: {found.tasks['wic'].cut} requests were longer than the context")


def test_the_model_and_random_states_are_left_as_they_were(model, beginning, data):
    module = copy.deepcopy(model).train()
    tokenizer = copy.deepcopy(beginning)
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run_tasks(module, tokenizer, load_tasks(["copa"], data, limit=2), 4)
    assert module.training
    assert tokenizer.pad_token is None
    assert (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def test_progress_counts_answers(model, beginning, data):
    calls = []
    run_tasks(model, beginning, load_tasks(["copa"], data), 4, progress=lambda *call: calls.append(call))
    assert calls == [("tasks", done, 28) for done in range(1, 29)]


def test_the_papers_columns_and_what_is_missing(model, beginning, data):
    asked = load_tasks(["superglue"], data)
    assert asked.missing == ("record", "xstorycloze_en")
    found = run_tasks(model, beginning, asked, 4)
    group = found.groups["superglue"]
    assert group.tasks == tuple(name for name in COLUMNS if name not in asked.missing)
    assert group.missing == asked.missing
    cells = [[found.tasks[name].metrics[metric].value for metric in COLUMNS[name]] for name in group.tasks]
    assert group.metrics["mean"].value == pytest.approx(sum(sum(row) / len(row) for row in cells) / 6)
    evaluation = rectilinear.evaluate(
        model, None, Evaluating(tasks=["superglue"], data=data, limit=3), tokenizer=beginning
    )
    assert evaluation.loss is evaluation.data is None
    assert "no data of record, xstorycloze_en" in evaluation.warnings[0]


def test_files_with_prompts_of_their_own(model, beginning, tmp_path):
    choices = [{"query": f"It was {i} and", "choices": ["the cat", "the dog"], "gold": i % 2} for i in range(6)]
    words = [{"context": "The old man saw a", "continuation": word} for word in ("cat", "dog", "cat")]
    write_lines(tmp_path / "mine.jsonl", choices)
    write_lines(tmp_path / "words.jsonl", words)
    found = run_tasks(model, beginning, load_tasks(["mine", "words"], tmp_path), 4)
    right = [
        (log_likelihood(model, beginning, line["query"], " the dog") >
         log_likelihood(model, beginning, line["query"], " the cat")) == line["gold"]
        for line in choices
    ]  # fmt: skip
    assert found.tasks["mine"].metrics["acc"].value == pytest.approx(sum(right) / 6)
    assert found.tasks["words"].metrics["acc"].constant == pytest.approx(2 / 3)
    mean = sum(log_likelihood(model, beginning, line["context"], " " + line["continuation"]) for line in words) / 3
    assert found.tasks["words"].metrics["perplexity"].value == pytest.approx(numpy.exp(-mean), rel=1e-4)


def test_arc_and_lambada_as_the_harness_asks_them(tmp_path):
    query = {"query": "Question: What is red?", "choices": ["hen", "sky", "sea"], "gold": 1}
    write_lines(tmp_path / "arc_easy.jsonl", [query])
    write_lines(tmp_path / "lambada_openai.jsonl", [{"context": 'She said, "No,', "continuation": "Ada"}])
    tasks = load_tasks(["arc_easy", "lambada_openai"], tmp_path).tasks
    [document] = tasks["arc_easy"].eval_docs
    assert tasks["arc_easy"].doc_to_text(document) == "Question: What is red?\nAnswer:"
    assert tasks["arc_easy"].doc_to_choice(document) == ["hen", "sky", "sea"]
    assert tasks["arc_easy"].doc_to_target(document) == 1
    [document] = tasks["lambada_openai"].eval_docs
    assert tasks["lambada_openai"].doc_to_text(document) == 'She said, "No,'
    assert tasks["lambada_openai"].doc_to_target(document) == " Ada"


def test_record_in_its_own_form(model, beginning, tmp_path):
    """Entities are spans whose end is inside; several answers may be right."""
    passage = {
        "text": "Ada met Bo.\n@highlight\nBo fed Ada",
        "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 9}],
    }
    asked = {"query": "It was @placeholder who met.", "answers": [{"start": 8, "end": 9, "text": "Bo"}], "idx": 0}
    write_lines(tmp_path / "ReCoRD" / "val.jsonl", [{"idx": 0, "passage": passage, "qas": [asked]}])
    task = load_tasks(["record"], tmp_path).tasks["record"]
    [document] = task.eval_docs
    assert task.doc_to_choice(document) == ["  - It was Ada who met.", "  - It was Bo who met."]
    assert task.doc_to_text(document) == "Ada met Bo.\n\n  - Bo fed Ada.\n"
    assert task.process_results(document, [(-2.0, False), (-1.0, False)]) == {"f1": 1.0, "em": 1}


def test_spans_that_are_not_in_the_text_are_mended_as_on_the_hub(tmp_path):
    target = {"span1_index": 1, "span1_text": "The cat.", "span2_index": 4, "span2_text": "it"}
    write_lines(tmp_path / "WSC" / "val.jsonl", [{"text": "Then the cat saw it .", "target": target, "label": True}])
    [document] = load_tasks(["wsc"], tmp_path).tasks["wsc"].eval_docs
    assert document["span1_text"] == "the cat"


REFUSALS = [
    ({"names": ["boolqq"]}, "got 'boolqq'; try boolq"),
    ({"names": ["super-glue-lm-eval-v1"]}, "expected tasks, or superglue, with `data`, got super-glue-lm-eval-v1"),
    ({"names": ["record"]}, "expected data of record in "),
    ({"names": ["record", "superglue"]}, "expected data of record in "),
    ({"names": ["boolq"], "limit": 0}, "`limit` to be greater than 0, got 0"),
    ({"names": ["boolq"], "num_fewshot": -1}, "`num_fewshot` to be greater than or equal to 0, got -1"),
    ({"names": [], "data": None}, "expected no `data` without `tasks`"),
    ({"names": []}, "expected no `data` without `tasks`"),
    ({"names": ["boolq"], "data": "nowhere"}, "expected a folder for `data`, got nowhere"),
]


@pytest.mark.parametrize(("options", "says"), REFUSALS, ids=[says for _, says in REFUSALS])
def test_requests_that_cannot_be_met(options, says, data):
    with pytest.raises(RequestError, match=says):
        load_tasks(**{"data": data, **options})


BROKEN = [
    ("BoolQ/val.jsonl", '{"passage": "a"', "val.jsonl, line 1: expected JSON"),
    ("BoolQ/val.jsonl", '{"passage": "a", "question": "b", "label": "yes"}', 'expected label false, true, got "yes"'),
    ("BoolQ/other.jsonl", "{}", "expected val.jsonl in "),
    ("boolq.jsonl", '{"text": "a"}', "expected columns and answers as boolq has them on the Hub"),
    ("boolq.jsonl", '{"query": "a", "choices": ["b", "c"], "gold": 0}', "which are understood for arc_easy"),
    (
        "boolq.jsonl",
        '{"passage": "a", "question": "b", "label": "no way"}',
        "boolq.jsonl, question 1: expected an answer",
    ),
    ("boolq.jsonl", '{"passage": "a", "question": "b", "label": 2}', "as boolq has them on the Hub .*IndexError"),
    (
        "boolq.jsonl",
        '{"passage": "a", "label": 1, "question": "b"}\n{"passage": "a", "label": 0}',
        "line 2: expected a",
    ),
    ("mine.jsonl", '{"text": "a"}', "expected query, choices, gold or context, continuation in "),
    ("mine.jsonl", '{"query": "a", "choices": ["b"], "gold": 0}', "at least two texts in 'choices'"),
    ("mine.jsonl", '{"query": "a", "choices": ["b", "c"], "gold": 2}', "expected gold 0, 1, got 2"),
    ("lambada_openai.jsonl", '{"context": "a", "continuation": "b c"}', "expected one word in 'continuation'"),
]


@pytest.mark.parametrize(("file", "content", "says"), BROKEN, ids=[says for *_, says in BROKEN])
def test_files_that_are_not_what_they_should_be(file, content, says, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content + "\n")
    with pytest.raises(RequestError, match=says):
        load_tasks(["boolq" if "BoolQ" in file else path.stem], tmp_path)


@pytest.mark.slow
def test_examples_are_those_of_the_harness(model, beginning, data):
    """Drawn with the harness's own seeds, where none is asked for."""
    asked = load_tasks(["boolq", "sglue_rte"], data, num_fewshot=3)
    run_tasks(model, beginning, asked, 4)
    prompts = {name: [instance.args[0] for instance in task.instances] for name, task in asked.tasks.items()}
    own = run_the_harness(
        model,
        beginning,
        ["boolq", "sglue_rte"],
        lambda task: as_on_the_hub(task, data),
        "samples",
        lambda task: as_on_the_hub(task, data, "train"),
        num_fewshot=3,
    )
    assert prompts == {
        name: [request[0] for sample in samples for request in sample["arguments"]] for name, samples in own.items()
    }
    run_tasks(model, beginning, asked, 4, seed=1)
    others = {name: [instance.args[0] for instance in task.instances] for name, task in asked.tasks.items()}
    assert prompts != others


def test_examples_that_are_not_there(tmp_path, data):
    write_lines(tmp_path / "BoolQ" / "val.jsonl", lines(data / "BoolQ" / "val.jsonl"))
    with pytest.raises(RequestError, match="expected 2 examples of boolq to show, got none"):
        load_tasks(["boolq"], tmp_path, num_fewshot=2)


def test_examples_that_a_task_has_by_itself_do_not_come_from_what_is_asked(tmp_path):
    """gsm8k shows five worked examples, of its training part; a single file has none."""
    write_lines(tmp_path / "gsm8k.jsonl", [{"question": f"{i}+1?", "answer": f"#### {i + 1}"} for i in range(12)])
    with pytest.raises(RequestError, match=r"expected 5 examples of gsm8k to show, got none .* try `num_fewshot=0`"):
        load_tasks(["gsm8k"], tmp_path)


def test_written_answers_and_what_is_cut_of_their_prompts(model, beginning, tmp_path):
    questions = [{"question": f"{i}+1? " * repeats, "answer": f"#### {i + 1}"} for i, repeats in ((1, 1), (2, 90))]
    write_lines(tmp_path / "gsm8k.jsonl", questions)
    found = run_tasks(model, beginning, load_tasks(["gsm8k"], tmp_path, num_fewshot=0), 2)
    record = found.tasks["gsm8k"]
    assert (record.cut, record.num_fewshot, record.n) == (1, 0, 2)
    assert set(record.metrics) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert all(metric.value == 0 for metric in record.metrics.values())


def without_metrics(results):
    results["results"] = {name: {"alias": name} for name in results["results"]}


def without_items(results):
    for sample in results["samples"]["copa"]:
        del sample["acc"]


@pytest.mark.parametrize(
    ("lose", "says"),
    [
        (lambda results: results.pop("n-samples"), "have 'n-samples' in its results"),
        (lambda results: results["n-samples"]["copa"].pop("effective"), "have 'effective' in its results"),
        (without_metrics, "have metrics of copa, such as 'acc,none', in its results"),
        (without_items, "have samples with the items of copa's acc"),
    ],
)
def test_results_without_what_is_read_from_them(lose, says, model, beginning, data, monkeypatch):
    evaluate = evaluator.evaluate

    def losing(*args, **options):
        lose(results := evaluate(*args, **options))
        return results

    monkeypatch.setattr(evaluator, "evaluate", losing)
    with pytest.raises(JobError, match=rf"expected lm_eval to {says}, which version \d"):
        run_tasks(model, beginning, load_tasks(["copa"], data), 8)


def test_requests_that_are_scored_in_some_other_way(model, beginning, data, monkeypatch):
    monkeypatch.setattr(HFLM, "loglikelihood", lambda self, requests, **options: [(0.0, True)] * len(requests))
    with pytest.raises(JobError, match=r"expected lm_eval to score continuations by HFLM\._loglikelihood_tokens"):
        run_tasks(model, beginning, load_tasks(["copa"], data), 8)


def test_logits_that_are_not_finite(model, beginning, data):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.inf)
    with pytest.raises(JobError, match="expected finite logits on the tasks"):
        run_tasks(broken, beginning, load_tasks(["copa"], data), 4)


def test_a_group_of_the_harness(model, beginning, data, monkeypatch):
    """From the Hub, or what stands for it here."""
    rng, words = random.Random(0), ("a cat", "a dog", "the old man", "it was red")
    story = {f"input_sentence_{k}": f"It {k}." for k in range(1, 5)}
    rows = [
        {
            "story_id": str(i),
            **story,
            **{f"sentence_quiz{k}": f"{rng.choice(words)}, {rng.choice(words)}." for k in (1, 2)},
        }
        | {"answer_right_ending": 1 + (i % 3 == 0)}
        for i in range(12)
    ]
    splits = {split: Dataset.from_list(rows) for split in ("train", "eval")}
    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", lambda **_: splits)
    found = run_tasks(model, beginning, load_tasks(["xstorycloze"]), 8)
    group = found.groups["xstorycloze"]
    assert len(group.tasks) == 11
    values = [found.tasks[name].metrics["acc"].value for name in group.tasks]
    assert group.metrics["acc"].value == pytest.approx(sum(values) / 11)
    assert found.tasks["xstorycloze_en"].source == "juletxara/xstory_cloze/en"
    other = build_llama(seed=1)
    compared = rectilinear.evaluate(
        model, None, Evaluating(tasks="xstorycloze"), tokenizer=beginning, against=other
    ).differences
    found, theirs = compared.groups["xstorycloze"]["acc"], run_tasks(other, beginning, load_tasks(["xstorycloze"]), 8)
    assert found.value == pytest.approx(group.metrics["acc"].value - theirs.groups["xstorycloze"].metrics["acc"].value)
    assert found.value != 0
    # Tasks are of the same size here, so that the group's error is that of a mean of independent tasks.
    errors = [compared.tasks[name]["acc"].stderr for name in group.tasks]
    assert found.stderr == pytest.approx(math.sqrt(sum(error**2 for error in errors)) / 11, rel=1e-6)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(found.value) / found.stderr))


@pytest.mark.slow
def test_one_document_has_no_error(model, beginning, data):
    evaluation = rectilinear.evaluate(
        model,
        None,
        Evaluating(tasks=["superglue"], data=data, limit=1),
        tokenizer=beginning,
        against=copy.deepcopy(model),
    )
    assert evaluation.groups["superglue"].metrics["mean"].stderr is None
    assert evaluation.differences.groups["superglue"]["mean"].stderr is None


def test_what_is_not_installed(monkeypatch, data):
    monkeypatch.setattr("rectilinear.errors.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"try pip install 'rectilinear\[eval\]'"):
        load_tasks(["boolq"], data)


def test_a_module_that_is_no_transformers_model(beginning, data):
    with pytest.raises(RequestError, match="expected a transformers model for tasks, got Linear"):
        run_tasks(torch.nn.Linear(2, 2), beginning, load_tasks(["copa"], data), 1)


def test_logarithms_of_perplexities_are_those_of_the_harness():
    rng = random.Random(0)
    items = [-rng.random() * 5 for _ in range(20)]
    assert _log_perplexity(items) == pytest.approx(math.log(perplexity(items)))
    weighted = [(-rng.random() * 50, rng.randint(1, 20)) for _ in range(20)]
    assert _log_perplexity(weighted) == pytest.approx(math.log(weighted_perplexity(weighted)))
    assert _log_perplexity([-2000.0, -3000.0]) == 2500.0  # whose own perplexity is beyond float64


def test_numbers_of_examples_that_the_harness_does_not_change_are_said(model, beginning, data):
    asked = load_tasks(["copa"], data, num_fewshot=2)
    asked.tasks["copa"].set_config("num_fewshot", 0)
    found = run_tasks(model, beginning, asked, 4)
    assert found.tasks["copa"].num_fewshot == 0
    assert found.warnings == ("copa: the harness asks it with 0 examples, whatever `num_fewshot` says",)


def test_errors_of_a_model_s_own_code_are_told_in_a_line(model, beginning, data, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("shapes do not match\nand more")

    monkeypatch.setattr(type(model), "forward", broken)
    with pytest.raises(JobError, match=r"the harness could not run copa: RuntimeError: shapes do not match$"):
        run_tasks(model, beginning, load_tasks(["copa"], data), 4)


def test_perplexities_are_compared_as_ratios(model, beginning, tmp_path):
    words = [
        {"context": f"The old man {i} saw a", "continuation": word} for i, word in enumerate(("cat", "dog", "hen"))
    ]
    write_lines(tmp_path / "words.jsonl", words)
    other = build_llama(seed=4)
    other.config.max_position_embeddings = 512
    found = rectilinear.evaluate(
        model, None, Evaluating(tasks=["words"], data=tmp_path), tokenizer=beginning, against=other
    )
    ours, theirs = (part.tasks["words"].metrics["perplexity"].value for part in (found, found.against))
    assert found.differences.tasks["words"]["perplexity"].value == pytest.approx(numpy.log(ours / theirs))
    assert found.differences.tasks["words"]["acc"].value == 0


def test_tasks_are_in_the_order_that_was_asked_for(data):
    assert [*load_tasks(["wsc", "superglue", "rte"], data).tasks] == ["wsc", *LOCAL[:-1], "rte"]
    assert [*load_tasks(["superglue", "wsc"], data).tasks] == [*LOCAL]


def test_which_documents_are_about_one_passage():
    def samples(name, texts):
        return [{"doc": {name: text, "question": number}} for number, text in enumerate(texts)]

    assert _passages(samples("paragraph", ["a", "b", "a", "c"])) == [0, 1, 0, 2]
    assert _passages(samples("passage", ["a", "a"])) == [0, 0]
    assert _passages(samples("passage", ["a", "b"])) is None  # each is about another
    assert _passages(samples("sentence", ["a", "a"])) is None
    assert _passages([*samples("passage", ["a", "a"]), {"doc": {"query": "b"}}]) is None

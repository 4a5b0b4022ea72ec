"""Small data files in the formats of SuperGLUE, whose answers are planted so that a tiny model can learn them."""

import json
import random

CLAIMS = ("entailment", "contradiction", "neutral")
SIGNS = ("cat.", "dog.", "hen.")


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def boolq(i, rng):
    return {"question": f"is it {rng.choice('ab')}", "passage": f"It was {i}.", "label": i % 2 == 0, "idx": i}


def cb(i, rng):
    """The last word decides."""
    answer = rng.randrange(3)
    premise = f"The girl met a {rng.choice(SIGNS)}" * rng.randint(1, 4)
    return {"premise": premise, "hypothesis": f"It was a {SIGNS[answer]}", "label": CLAIMS[answer], "idx": i}


def copa(i, rng):
    """A choice with a cat in it is right."""
    answer = rng.randrange(2)
    right, wrong = f"The {rng.choice(('old', 'red'))} cat.", f"The {rng.choice(('old', 'red'))} dog."
    choices = (right, wrong) if answer == 0 else (wrong, right)
    asked = rng.choice(("cause", "effect"))
    named = {"choice1": choices[0], "choice2": choices[1]}
    return {"premise": "It was lost.", **named, "question": asked, "label": answer, "idx": i}


def multirc(i, rng):
    answers = [{"text": f"A {k}.", "idx": k, "label": k % 2} for k in range(3)]
    questions = [{"question": f"Who met {k}?", "answers": answers, "idx": k} for k in range(2)]
    return {"idx": i, "version": 1.1, "passage": {"text": f"They met {i}.", "questions": questions}}


def rte(i, rng):
    label = ("entailment", "not_entailment")[i % 2]
    return {"premise": f"It was {i}.", "hypothesis": "It was.", "label": label, "idx": i}


def wic(i, rng):
    places = {"start1": 6, "end1": 9, "start2": 6, "end2": 9, "version": 1.1}
    sentences = {"word": "cat", "sentence1": f"A red cat {i}.", "sentence2": "A old cats."}
    return {**sentences, "idx": i, **places, "label": i % 2 == 1}


def wsc(i, rng):
    target = {"span1_index": 0, "span1_text": "The old man", "span2_index": 6, "span2_text": "he"}
    return {"text": f"The old man fed it and he, {i}, met it.", "target": target, "idx": i, "label": i % 2 == 0}


def pair(i, rng):
    """The cat is preferred."""
    return {"prompt": f"Who was it, {rng.randrange(10)}? ", "chosen": "The cat.", "rejected": "The dog."}


FORMATS = {
    "BoolQ": boolq, "CB": cb, "COPA": copa, "MultiRC": multirc, "RTE": rte, "WiC": wic, "WSC": wsc,
}  # fmt: skip


#: By name: the folder, and values of the label in the order of their indices on the Hub.
FOLDERS = {name.lower(): name for name in FORMATS}
ANSWERS = {"cb": CLAIMS, "rte": ("entailment", "not_entailment"), "copa": (0, 1), "multirc": (0, 1)}
ANSWERS |= dict.fromkeys(("boolq", "wic", "wsc"), (False, True))


def make_lines(form, count, seed=0):
    rng = random.Random(seed)
    return [form(i, rng) for i in range(count)]


def write_superglue(folder, train=48, validation=24):
    for name, form in FORMATS.items():
        write_lines(folder / name / "train.jsonl", make_lines(form, train))
        write_lines(folder / name / "val.jsonl", make_lines(form, validation, seed=1))
    write_lines(folder / "pairs.jsonl", make_lines(pair, train + validation))
    return folder

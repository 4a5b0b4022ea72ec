"""Tasks are read as their files have them, and refused in one line."""

import pytest

from rectilinear.errors import RequestError
from rectilinear.text.tasks import TASKS, Question, read_task
from tests.superglue import ANSWERS, FOLDERS, FORMATS, make_lines, write_lines, write_superglue

SUPERGLUE = {name.lower(): form for name, form in FORMATS.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_superglue(tmp_path_factory.mktemp("superglue"), train=5, validation=2)


def one(name, line, tmp_path, **changes):
    """The questions that one line asks."""
    folder = tmp_path / FOLDERS.get(name, "")
    for split in ("train", "val"):
        write_lines(folder / f"{split}.jsonl", [{**line, **changes}])
    return list(read_task(name, tmp_path).train)


def test_boolq(tmp_path):
    line = {"question": "is it red", "passage": "It is old. It is red.", "label": False, "idx": 0}
    assert one("boolq", line, tmp_path) == [Question(("It is old. It is red.\nis it red?",), 0, 0)]
    assert one("boolq", line, tmp_path, label=True)[0].answer == 1


@pytest.mark.parametrize(
    ("name", "labels"), [("cb", ["entailment", "contradiction", "neutral"]), ("rte", ["entailment", "not_entailment"])]
)
def test_entailment(name, labels, tmp_path):
    line = {"premise": "It was a cat.", "hypothesis": "It was.", "idx": 0}
    for answer, label in enumerate(labels):
        assert one(name, line, tmp_path, label=label) == [Question(("It was a cat.\nIt was.",), answer, 0)]
    assert TASKS[name].labels == tuple(labels)


def test_copa(tmp_path):
    line = {"premise": "It fell.", "choice1": "It was cut.", "choice2": "It ate.", "question": "cause", "label": 1}
    assert one("copa", line, tmp_path) == [
        Question(("It fell.\nbecause: It was cut.", "It fell.\nbecause: It ate."), 1, 0)
    ]
    assert one("copa", line, tmp_path, question="effect")[0].texts[0] == "It fell.\nso: It was cut."


def test_multirc_has_a_text_for_each_answer_and_a_group_for_each_passage(tmp_path):
    answers = [{"text": "No", "idx": 0, "label": 0}, {"text": "Yes", "idx": 1, "label": 1}]
    questions = [{"question": "Is it?", "answers": answers}, {"question": "Who?", "answers": answers[:1]}]
    line = {"idx": 7, "passage": {"text": "It is.", "questions": questions}}
    write_lines(tmp_path / "MultiRC" / "train.jsonl", [line, line])
    write_lines(tmp_path / "MultiRC" / "val.jsonl", [line])
    train = read_task("multirc", tmp_path).train
    assert train[:3] == (
        Question(("It is.\nIs it?\nNo",), 0, 0),
        Question(("It is.\nIs it?\nYes",), 1, 0),
        Question(("It is.\nWho?\nNo",), 0, 0),
    )
    assert [question.group for question in train] == [0, 0, 0, 1, 1, 1]


def test_wic(tmp_path):
    line = {"word": "place", "sentence1": "My place.", "sentence2": "No place.", "label": True}
    assert one("wic", line, tmp_path) == [Question(("My place.\nNo place.\nplace",), 1, 0)]


@pytest.mark.parametrize("index", [6, 7])
def test_wsc_marks_both_spans(index, tmp_path):
    target = {"span1_index": 0, "span1_text": "the old man", "span2_index": index, "span2_text": "He"}
    line = {"text": "The old man fed it,  and he, at last, was he.", "target": target, "label": True}
    # The second time the data are off by one.
    expected = "*The old man* fed it, and _he,_ at last, was he.\nHe: the old man"
    assert one("wsc", line, tmp_path) == [Question((expected,), 1, 0)]


def test_preferences(tmp_path):
    lines = [{"chosen": f"c{i}", "rejected": "r", "prompt": f"{i} "} for i in range(25)]
    read = read_task("reward", write_lines(tmp_path / "pairs.jsonl", lines))
    assert [question.texts[0] for question in read.validation] == ["9 c9", "19 c19"]
    assert len(read.train) == 23
    assert read.train[0] == Question(("0 c0", "0 r"), 0, 0)
    # Fewer than ten: the last one.
    few = read_task("reward", write_lines(tmp_path / "few.jsonl", [{"chosen": "a", "rejected": "b"}] * 3))
    assert (len(few.train), len(few.validation)) == (2, 1)
    assert few.train[0].texts == ("a", "b")
    write_lines(tmp_path / "both" / "train.jsonl", lines)
    write_lines(tmp_path / "both" / "val.jsonl", lines[:4])
    both = read_task("reward", tmp_path / "both")
    assert (len(both.train), len(both.validation)) == (25, 4)


@pytest.mark.parametrize("name", SUPERGLUE)
def test_folders_of_any_case_and_no_more_lines_than_asked_for(name, data, tmp_path):
    folder = FOLDERS.get(name, "")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / folder.swapcase()).symlink_to(data / folder)
    assert read_task(name, tmp_path / "data").train == read_task(name, data).train
    few = read_task(name, data, max_examples=1)
    assert {question.group for question in (*few.train, *few.validation)} == {0}


def of_the_hub(name, lines):
    """Lines as the Hub has them: labels as indices, spans and answers not nested."""
    if name == "wsc":
        return [{"text": line["text"], **line["target"], "label": int(line["label"])} for line in lines]
    if name == "multirc":
        return [
            {
                "paragraph": line["passage"]["text"],
                "question": asked["question"],
                "answer": given["text"],
                "label": given["label"],
            }
            for line in lines
            for asked in line["passage"]["questions"]
            for given in asked["answers"]
        ]
    return [{**line, "label": ANSWERS[name].index(line["label"])} for line in lines]


@pytest.mark.parametrize("name", SUPERGLUE)
def test_the_hub_has_the_same_questions(name, data, monkeypatch):
    import datasets

    asked = []

    def load_dataset(source, config, *, split, streaming):
        asked.append((source, config, split, streaming))
        lines = make_lines(SUPERGLUE[name], *((5, 0) if split == "train" else (2, 1)))
        return datasets.Dataset.from_list(of_the_hub(name, lines)).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub, files = read_task(name), read_task(name, data)
    assert asked == [("aps/super_glue", name, split, True) for split in ("train", "validation")]
    assert (hub.train, hub.validation) == (files.train, files.validation)


BOOLQ = {"question": "is it", "passage": "It is.", "label": True}
SPANS = {"span1_index": 0, "span1_text": "cat", "span2_index": 2, "span2_text": "he"}

#: Task, the lines of its files, and what the answer must say.
BAD = {
    "no column": ("boolq", [BOOLQ, {"question": "is it", "label": True}],
                  "train.jsonl, line 2: expected a column 'passage', got question, label"),
    "no columns": ("cb", [{}], "train.jsonl, line 1: expected a column 'premise', got no columns"),
    "another kind": ("boolq", [{**BOOLQ, "passage": 3}], "line 1: expected str in 'passage', got int"),
    "unknown label": ("boolq", [{**BOOLQ, "label": "maybe"}], 'line 1: expected label false, true, got "maybe"'),
    "no label": ("rte", [{"premise": "a", "hypothesis": "b", "label": None}],
                 'expected label "entailment", "not_entailment", got null'),
    "a list as label": ("cb", [{"premise": "a", "hypothesis": "b", "label": [1]}], "got [1]"),
    "no nested column": ("multirc", [{"passage": {"text": "a"}}],
                         "line 1, passage: expected a column 'questions', got text"),
    "no objects": ("multirc", [{"passage": {"text": "a", "questions": ["b"]}}],
                   "line 1, passage: expected an object in 'questions', got str"),
    "no questions": ("multirc", [{"passage": {"text": "a", "questions": []}}],
                     "expected at least one question of multirc, got none"),
    "no such span": ("wsc", [{"text": "It is he.", "label": True, "target": SPANS}],
                     "line 1: expected span1_text among the words of the text, got 'cat'"),
    "nothing": ("cb", [], "expected at least one line in "),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_lines(case, tmp_path):
    name, lines, says = BAD[case]
    for split in ("train", "val"):
        write_lines(tmp_path / FOLDERS.get(name, "") / f"{split}.jsonl", lines)
    with pytest.raises(RequestError) as error:
        read_task(name, tmp_path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files(data, tmp_path):
    cases = [
        (("cb", tmp_path / "none"), f"no data at {tmp_path / 'none'}: expected a folder or a Hub id"),
        (("reward", tmp_path / "none"), "expected a .jsonl file or a folder"),
        (("reward",), "expected `data` for `task=reward`"),
        (("cb", data / "pairs.jsonl"), "expected a folder or a Hub id"),
        (("cb", tmp_path), f"expected a folder CB in {tmp_path}, got no folders"),
        (("cb", data / "CB"), "expected a folder CB in"),
        (("cb", "nobody/nothing"), "no data 'nobody/nothing': expected a folder or a Hub id of SuperGLUE"),
        (("cd", data), "got 'cd'; try cb"),
    ]
    for arguments, says in cases:
        with pytest.raises(RequestError) as error:
            read_task(*arguments)
        assert says in str(error.value)
    write_lines(tmp_path / "RTE" / "train.jsonl", [{"premise": "a", "hypothesis": "b", "label": "entailment"}])
    with pytest.raises(RequestError, match=r"expected val.jsonl in .*RTE, got train.jsonl"):
        read_task("rte", tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"chosen": "a", "rejected": "b"}\nchosen\n')
    with pytest.raises(RequestError, match=r"broken.jsonl, line 2: expected JSON, got 'chosen'"):
        read_task("reward", tmp_path / "broken.jsonl")
    with pytest.raises(RequestError, match="expected at least two pairs"):
        read_task("reward", write_lines(tmp_path / "one.jsonl", [{"chosen": "a", "rejected": "b"}]))


#: Of the shared files: questions to train on, questions asked, answers, texts a question.
REAL = {
    "boolq": (1000, 3270, {0, 1}, 1),
    "cb": (250, 56, {0, 1, 2}, 1),
    "copa": (400, 100, {0, 1}, 2),
    "multirc": (154, 4848, {0, 1}, 1),
    "rte": (1000, 277, {0, 1}, 1),
    "wic": (5428, 638, {0, 1}, 1),
    "wsc": (32, 104, {0, 1}, 1),  # all 32 are true
}


def test_the_real_files(shared):
    for name, (train, validation, answers, texts) in REAL.items():
        read = read_task(name, shared / "data" / "superglue")
        assert (len(read.train), len(read.validation)) == (train, validation)
        for part in (read.train, read.validation):
            assert {question.answer for question in part} == ({1} if name == "wsc" and part == read.train else answers)
            assert {len(question.texts) for question in part} == {texts}

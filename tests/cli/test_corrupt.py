"""Whatever is in the files of a model or plan: a command ends with 0, 1 or 2 and one line, and never a traceback.

Files are made from good ones by generated faults. A few are tried by default, many where ``RECTILINEAR_FAULTS`` is
``all``.
"""

import contextlib
import io
import json
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import Phase, given
from hypothesis import strategies as st

from rectilinear.cli.main import main
from tests import conftest
from tests.hostile import MANY, examples

pytestmark = pytest.mark.faults

#: A fault that is found is told as it is: to shrink one takes many runs.
tried = partial(examples, derandomize=not MANY, phases=[Phase.generate])

SIZE = ["--max-tokens", "128", "--seq-len", "32", "--device", "cpu"]

#: What may stand in the place of any value.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**3, 10**6, 10**9, 10**12, 10**30, -(10**12), 1e308, float("nan"), float("inf"), 0.5]),
    st.sampled_from(["", "x", "../../etc", "\x1b[31m", "\ud800", "5", "llama", "a/b", "a--b.C", "x" * 10_000]),
    st.sampled_from([[], {}, [None], [[]], {"a": {"b": []}}, {"auto_map": 3}, [10**12]]),
)

#: Keys that are in no good file, and that libraries look at.
MORE = st.sampled_from(
    ["auto_map", "quantization_config", "text_config", "layer_types", "rope_parameters", "attn_implementation", "dtype"]
)


def run(*arguments):
    """How the command line ends in this process, and what it says on stderr; what escapes from it is an error."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patched.setattr(sys, "argv", ["rectilinear", *map(str, arguments)])
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            signal.signal(signal.SIGTERM, before)
    return code, err.getvalue()


def check(*arguments):
    """A command ends as it should; its exit code."""
    code, err = run(*arguments)
    lines = [line for line in err.splitlines() if not line.startswith("rectilinear: warning: ")]
    assert code in (0, 1, 2)
    assert len(lines) == (code != 0), err
    assert all(line.startswith("rectilinear: error: ") for line in lines), err
    return code


@st.composite
def changed(draw, good):
    """A JSON file with one to three values replaced, removed or added somewhere."""
    value = json.loads(good)
    for _ in range(draw(st.integers(1, 3))):
        place, key = value, None
        while isinstance(place, (dict, list)) and place:
            around, keys = place, sorted(place) if isinstance(place, dict) else range(len(place))
            key = draw(st.sampled_from(keys))
            place = around[key]
            if draw(st.booleans()):
                break
        if key is None or (isinstance(around, dict) and draw(st.integers(0, 4)) == 0):
            around, key = value, draw(MORE)
        if draw(st.integers(0, 4)) == 0:
            around.pop(key, None) if isinstance(around, dict) else around.pop(key)
        else:
            around[key] = draw(ODD)
    return json.dumps(value).encode()


@st.composite
def garbled(draw, good):
    """A file cut off, with other bytes in it, or something else altogether."""
    place, length = draw(st.integers(0, min(len(good), 4000))), draw(st.integers(1, 20))
    deep = draw(st.sampled_from([10, 5_000, 100_000]))
    return draw(
        st.sampled_from(
            [
                good[:place],
                good[:-length],
                good[:place] + bytes(length) + good[place + length :],
                good[:place] + b"\xff\xfe" + good[place:],
                good + good,
                b"null",
                b"[]",
                b"7",
                b'"text"',
                b"9" * 5_000,
                b'{"a": ' + b"9" * 5_000 + b"}",
                b"[" * deep + b"]" * deep,
                b'{"a":' * deep + b"1" + b"}" * deep,
                (10**15).to_bytes(8, "little") + good[8:],
                (8).to_bytes(8, "little") + b'{"a":{}}',
            ]
        )
    )


def faults(good, is_json=True):
    return st.one_of(changed(good), garbled(good)) if is_json else garbled(good)


@contextlib.contextmanager
def with_file(model, name, content, without=()):
    """A copy of a model with another file in the place of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = shutil.copytree(model, Path(scratch) / "model")
        for gone in without:
            (folder / gone).unlink()
        (folder / name).write_bytes(content)
        yield folder


@pytest.mark.parametrize(
    ("name", "few", "many"),
    [
        ("config.json", 15, 500),
        ("generation_config.json", 6, 100),
        ("tokenizer_config.json", 10, 150),
        ("tokenizer.json", 8, 150),
        ("model.safetensors", 8, 100),
    ],
)
def test_files_of_a_model(name, few, many, tiny_checkpoint, text_file):
    good = (tiny_checkpoint / name).read_bytes()

    @given(faults(good, name.endswith(".json")))
    @tried(few, many)
    def one(content):
        with with_file(tiny_checkpoint, name, content) as folder:
            if name == "config.json":
                check("inspect", folder)
            check("measure", folder, "--text", text_file, *SIZE)

    one()


def test_an_index_of_weights(tiny_checkpoint, text_file, tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path, max_shard_size="10KB")
    for file in tiny_checkpoint.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    name = "model.safetensors.index.json"

    @given(faults((tmp_path / name).read_bytes()))
    @tried(5, 100)
    def one(content):
        with with_file(tmp_path, name, content) as folder:
            check("measure", folder, "--text", text_file, *SIZE)

    one()


def test_an_adapter_configuration(tiny_checkpoint):
    good = json.dumps({"base_model_name_or_path": str(tiny_checkpoint), "peft_type": "LORA", "revision": None, "r": 8})

    @given(faults(good.encode()))
    @tried(15, 150)
    def one(content):
        with with_file(tiny_checkpoint, "adapter_config.json", content, without=["config.json"]) as folder:
            check("inspect", folder)

    one()


def test_a_plan(tiny_checkpoint, text_file, tmp_path):
    plan = conftest.linearize(tiny_checkpoint, text_file, kind="drop", blocks=[1], max_tokens=640, seq_len=32).plan
    file = tmp_path / "plan.json"

    @given(faults(plan.to_json().encode()))
    @tried(5, 100)
    def one(content):
        file.write_bytes(content)
        check("linearize", tiny_checkpoint, "--text", text_file, *SIZE, "--plan", file)

    one()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"null", "expected a JSON object in {model}/config.json, got None"),
        (b"[1]", "expected a JSON object in {model}/config.json, got [1]"),
        (b"\xff{}", "expected a JSON object in {model}/config.json, got no text in UTF-8"),
        (b"[" * 100_000, "expected a JSON object in {model}/config.json, got one that is nested too deep"),
        ({"hidden_size": 10**12}, "expected hidden_size in config.json of {model} to be at most 2,147,483,647"),
        ({"num_hidden_layers": 10**9}, "expected num_hidden_layers in config.json of {model} to be at most 1,000"),
        ({"num_hidden_layers": 0}, "weights of block 0 and others are not used"),
        ({"num_hidden_layers": -1}, "weights of block 0 and others are not used"),
        ({"intermediate_size": 10**9}, "is config.json that of another model?"),
        ({"vocab_size": -5}, "vocabulary of -5"),
        ({"hidden_act": "none"}, "expected a causal language model, got llama"),
    ],
)
def test_configurations_of_no_model(content, says, tiny_checkpoint, text_file):
    if isinstance(content, dict):
        content = json.dumps({**json.loads((tiny_checkpoint / "config.json").read_bytes()), **content}).encode()
    with with_file(tiny_checkpoint, "config.json", content) as folder:
        code, err = run("measure", folder, "--text", text_file, *SIZE)
        assert (code, says.format(model=folder) in err) == (2, True), err


@pytest.mark.parametrize("card", [b"---\nlicense: [\n---\n", b"---\nlicense: {a: 1}\n---\n", b"---\n\xff\n---\n"])
@pytest.mark.parametrize("tag", [b"", b'---\nlicense: !!python/object/apply:os.system ["exit 3"]\n---\n'])
def test_the_card_of_a_source_says_nothing_that_can_be_read(card, tag, tiny_checkpoint):
    from rectilinear.models.card_metadata import model_card_metadata

    with with_file(tiny_checkpoint, "README.md", tag or card) as folder:
        assert "license" not in model_card_metadata("it", base_model=str(folder))


@pytest.mark.parametrize("inside", [False, True], ids=["beside", "inside"])
def test_a_folder_whose_result_is_being_replaced(inside, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    staging = (out if inside else tmp_path) / ".out.staging-abcd1234"
    staging.mkdir()
    code, err = run("inspect", out)
    assert (code, "expected a folder with a config.json" in err) == (2, True)
    (staging / "journal.json").write_text("{}")
    code, err = run("inspect", out)
    assert (code, "a run was killed as it moved its result there; try the same command again" in err) == (2, True)

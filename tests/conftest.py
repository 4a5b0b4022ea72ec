"""Tiny models, a checkpoint and a text, all built in code from fixed seeds; nothing is downloaded."""

import contextlib
import gc
import io
import json
import os
import platform
import random
import runpy
import subprocess
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path

# Read when these libraries are first imported, and by the processes that tests start: no Hub, and one thread,
# which suits models this small and gives the same bits in every process.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
# No folder, so that no scores are kept and none is taken for measured that was not.
os.environ["RECTILINEAR_CACHE"] = os.devnull

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from tests import faults, hostile

ROOT = Path(__file__).parents[1]
VOCABULARY, WIDTH, BLOCKS, CONTEXT = 128, 16, 3, 64

logging.disable_progress_bar()


def pytest_sessionfinish(session):
    """What `make faults` tried, each process its own part, and what came of it."""
    for name, count in sorted(hostile.TRIED.items()):
        faults.report(inputs=name, tried=count)
    if not hasattr(session.config, "workerinput"):
        versions = {name: version(name) for name in ("torch", "transformers")}
        ended = {"date": date.today().isoformat(), "python": platform.python_version(), **versions}
        faults.report(tests=session.testscollected, failed=session.testsfailed, **ended)


def linearize(model, text, **options):
    """`rectilinear.linearize` with the options of all its settings side by side, as the command line has them."""
    import rectilinear
    from rectilinear.linearization.kinds import KINDS, make_kind
    from rectilinear.models.settings import Loading

    def taken(names):
        return {name: options.pop(name) for name in [*options] if name in names}

    kind = taken({"kind", *(name for each in KINDS.values() for name in each.model_fields)})
    selection, rows, loading, fitting = (
        settings(**taken(settings.model_fields))
        for settings in (rectilinear.Selection, rectilinear.CalibrationRows, Loading, rectilinear.Fitting)
    )
    made = make_kind(kind.pop("kind", "filter"), kind) if kind else None
    return rectilinear.linearize(
        model, text, made, selection, rows=rows, loading=loading, fitting=fitting, **{"progress": False, **options}
    )


def without_time(result):
    """A fine-tuning as JSON has it, but for how long it took."""
    told = json.loads(result.to_json())
    for run in told["runs"]:
        run.pop("seconds")
        run["log"] = [entry for entry in run["log"] if "loss" in entry]
    return told


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared models and texts: ``$RECTILINEAR_SHARED``, or ``shared`` beside the repository."""
    folder = Path(os.environ.get("RECTILINEAR_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared models and texts at {folder}; set RECTILINEAR_SHARED to where they are")
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Collections of garbage, which Trainer asks for, look at nothing that is there before a module's tests.

    That is what was imported and fixtures of the session, which stay to the end; to look at all of it takes 0.3 s.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """150 documents of three to eight short sentences, about 7,000 tokens of `tiny_tokenizer`."""
    rng = random.Random(0)
    cast, acts = ("cat", "dog", "old man", "red hen", "girl"), ("saw", "met", "fed", "liked", "lost")

    def sentence() -> str:
        return f"The {rng.choice(cast)} {rng.choice(acts)} a {rng.choice(cast)}, and it was {rng.choice(acts)}."

    return [" ".join(sentence() for _ in range(rng.randint(3, 8))) for _ in range(150)]


@pytest.fixture(scope="session")
def text_file(documents, tmp_path_factory) -> Path:
    """`documents` as a ``.txt`` file."""
    path = tmp_path_factory.mktemp("text") / "tales.txt"
    path.write_text("\n<|endoftext|>\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(documents) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 128 ids that puts ``<s>`` (0) before and ``</s>`` (1) after each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    printable = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]  # the last two: blank and end of line
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=printable, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def build_llama(vocabulary: int = VOCABULARY, blocks: int = BLOCKS, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of width 16, its weights large enough for updates that matter."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_llama() -> LlamaForCausalLM:
    """A Llama of three blocks of width 16 and 128 token ids; shared by tests, so leave it as it is."""
    return build_llama()


@pytest.fixture(scope="session")
def save_checkpoint(tiny_tokenizer, tmp_path_factory):
    """A function that writes a model and `tiny_tokenizer` into a new folder and returns it."""

    def save(model: LlamaForCausalLM, name: str = "checkpoint") -> Path:
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_llama, save_checkpoint) -> Path:
    """`tiny_llama` and `tiny_tokenizer` in a folder."""
    return save_checkpoint(tiny_llama, "tiny-llama")


@pytest.fixture(scope="session")
def linearized(text_file, tiny_tokenizer):
    """A function that linearizes a tiny model of a family, each way once; shared by tests, so leave it as it is."""
    from tests.families import build

    @cache
    def make(family: str, blocks: tuple[int, ...] | None, dtype=torch.float32, **options):
        size = {"max_tokens": 2048, "seq_len": 32, "device": "cpu", **options}
        return linearize(build(family, dtype), text_file, tokenizer=tiny_tokenizer, blocks=blocks, **size)

    return make


@pytest.fixture(scope="session")
def exported(linearized, tmp_path_factory):
    """A function that saves what `linearized` makes, each once, without the check in a process of its own."""

    @cache
    def save(family: str, blocks: tuple[int, ...] | None, **options) -> Path:
        made = linearized(family, blocks, **options)
        folder = tmp_path_factory.mktemp(f"{family}-{options.get('kind', 'filter')}")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("rectilinear.models.export.check_reload", lambda *args: None)
            return made.save(folder)

    return save


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    """A function that loads a checkpoint as anyone would; its code is copied to a temporary cache of modules."""
    with pytest.MonkeyPatch.context() as patched:
        modules = str(tmp_path_factory.mktemp("modules"))
        patched.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
        yield lambda folder, trust=True: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust).eval()


@pytest.fixture
def reload_here(load, monkeypatch):
    """Have checkpoints reloaded in this process, which is quicker than one of their own."""

    def run(command, **options):
        monkeypatch.setattr("sys.argv", command[1:])
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                runpy.run_path(command[1], run_name="__main__")
        except Exception as error:
            return subprocess.CompletedProcess(command, 1, "", f"{type(error).__name__}: {error}")
        return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")

    monkeypatch.setattr("rectilinear.models.export.subprocess.run", run)

"""Decoders of every kind of structure are measured and edited right; `make matrix` tries every type there is."""

import json
from pathlib import Path

import pytest

from benchmarks import architectures
from tests.matrix.configurations import TYPES
from tests.matrix.trial import try_type

pytestmark = pytest.mark.usefixtures("load")  # code of checkpoints is copied where that says

RESULT = json.loads((Path(__file__).parents[2] / "benchmarks" / "architectures.json").read_text())

#: Types that everything works with.
NAMED = (
    *("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "mpt", "falcon", "llama", "mistral", "mixtral", "phi"),
    *("phi3", "gemma", "gemma2", "gemma3", "qwen2", "qwen3", "qwen3_moe", "stablelm", "olmo2", "glm", "glm4"),
    *("deepseek_v2", "deepseek_v3", "bitnet", "gpt_oss"),
)

#: What is peculiar to a type.
KINDS = {
    "bert": "norms after the stream, two matrices as an MLP",
    "bloom": "parts that add the stream themselves",
    "cpmant": "hidden states that are no token's",
    "deepseek_v4": "several residual streams",
    "falcon_h1": "an attention and a recurrence side by side, in one layer of the cache",
    "gemma3n_text": "streams before rows",
    "longcat_flash": "two layers of the cache a block",
    "mamba": "a recurrence, and no MLP",
    "xlnet": "tokens before rows",
    "zamba2": "weights that blocks share",
    "zaya": "a router's state from block to block",
}
FEW = ("cpmant", "deepseek_v4", "opt", "xlnet", "zaya")


def expected(model_type):
    return {name: answer["status"] for name, answer in RESULT["types"][model_type]["answers"].items()}


def tried(model_type):
    _, row = try_type(model_type)
    return {name: answer["status"] for name, answer in row["answers"].items()}


@pytest.mark.parametrize("model_type", FEW)
def test_a_few_kinds_of_structure(model_type):
    assert tried(model_type) == expected(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [kind for kind in KINDS if kind not in FEW])
def test_kinds_of_structure(model_type):
    assert tried(model_type) == expected(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gpt_neo", "mpt", "gpt_oss"])
def test_named_types_that_no_other_test_has(model_type):
    assert {*tried(model_type).values()} == {"ok"}


def test_named_types_pass_everything():
    for model_type in NAMED:
        assert {*expected(model_type).values()} == {"ok"}, model_type


def test_nothing_is_wrong_without_a_word():
    statuses = {
        (name, column): answer["status"]
        for name, row in RESULT["types"].items()
        for column, answer in row["answers"].items()
        if column != "built"
    }
    assert [place for place, status in statuses.items() if status in ("wrong", "traceback")] == []
    assert len(RESULT["types"]) == len(TYPES) or RESULT["environment"]["transformers"] != _version()
    assert architectures.count(RESULT, "measure") >= architectures.count(RESULT, "built") - 6
    assert architectures.count(RESULT, "drop") >= 165
    assert architectures.count(RESULT, "filter") >= 160


def _version():
    import transformers

    return transformers.__version__

"""Write docs/engines.md: which engines run what `linearize` leaves, from the cells in benchmarks/engines.

python benchmarks/engines_page.py
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from engines import COMMAND, STUDIES, perplexities
from page import table
from scoring import Study

from rectilinear.linearization.kinds import KINDS, make_kind

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "engines.md"

BEGIN = f"""# Other engines

What it takes to run a checkpoint of `linearize` elsewhere than in transformers with the code that comes with it. `{COMMAND}` writes checkpoints as GGUF files in float32
(`benchmarks/gguf_file.py CHECKPOINT FILE.gguf`, for Llamas) and runs them in llama.cpp on the processor. Both sides get the same token ids, so that tokenizers do not enter.
"""

TABLES = """
*Exact*: llama.cpp without flash attention and with keys and values kept in float32; *default*: as it comes, with keys and values in float16, and flash attention where it chooses so. Perplexities are of the same rows;
*exact* and *default* say how much llama.cpp's are above those of transformers, as a share, over all rows and, in brackets, for the row where they are furthest apart. *Log-probability*: the largest difference of any token's in any position, in nats. *Same first*: share of
positions with the same most likely token. Fits are made on few tokens, and blocks are chosen cheaply: compare the columns of a row, not the rows.
"""

NETWORKS = """
llama.cpp's architecture `deci` was made for Nemotron models, whose layers differ: a layer without heads has no attention, and one with heads but none for keys has a matrix instead, behind the norm and without a bias
([deci.cpp](https://github.com/ggml-org/llama.cpp/blob/75dc8f64c9308d0a946937100fbb9c2211dc9e64/src/models/deci.cpp)). Both give our logits. What it has no field for goes into biases: the mean of something is the bias of the feed-forward network before it, and an affine
map is a layer of its own, a matrix and the bias of a feed-forward network of width 1 whose weights are zero. An affine map of an MLP is such a layer too, with the MLP's norm. So layers are counted as in the file.
That llama.cpp predicts the same when it decodes token by token with its cache is tested on a tiny Llama (`tests/test_gguf_file.py`, where xllamacpp is installed).
"""

LITERAL = """
## What llama.cpp computes otherwise

Two things can be said in a GGUF file that llama.cpp loads without a word, and computes otherwise. `gguf_file.py` writes a feed-forward network of zeros for the first, and refuses the second.
"""

ELSEWHERE = """
## What it takes elsewhere

*Own code*: `trust_remote_code=True`, which runs the files beside the weights; all rows above were made so in plain transformers, those of whole blocks dropped or folded without it. *Measured* is what has a row above; all else is from the sources that are
linked, and nothing was run in vLLM, TensorRT-LLM or MLX-LM. *None*: in neither of llama.cpp's `llama` and `deci`; *not found*: in none of the three files that are linked.
"""

SOURCES = """
vLLM's [DeciLM](https://github.com/vllm-project/vllm/blob/00bd1493b3e82d6c13c68ee8a0e1c5a96707e190/vllm/model_executor/models/nemotron_nas.py), TensorRT-LLM's
[Nemotron-NAS](https://github.com/NVIDIA/TensorRT-LLM/blob/0193dbd4189221d0fd5e9f20cdb384d3da8dbc24/tensorrt_llm/_torch/models/modeling_nemotron_nas.py) and MLX-LM's
[nemotron-nas](https://github.com/ml-explore/mlx-lm/blob/13c89f497a3a8353c97df6f161df217bf84272c0/mlx_lm/models/nemotron-nas.py) read `block_configs`, an entry for each block: `no_op` of an attention or a feed-forward network in all three;
`replace_with_linear`, a matrix in its place, in the last two, in TensorRT-LLM without a bias and in MLX-LM with one where `attention_bias` (or `mlp_bias`) says so for all. In vLLM's file nothing reads it. TensorRT-LLM and MLX-LM compute the width of feed-forward networks from a factor, as a
multiple of 256. vLLM runs models with code of their own [through transformers](https://docs.vllm.ai/en/stable/models/supported_models/), windows included: it
[builds them](https://github.com/vllm-project/vllm/blob/810fb5d66ecbb2f08181383a06edc059bdf3dedc/vllm/model_executor/models/transformers/base.py) by `AutoModel.from_config`, while `auto_map` of our checkpoints names an `AutoModelForCausalLM` alone, and
calls them with `use_cache=False`, so that what filters and bounded attention remember has no place there.
"""


def page() -> str:
    """The text."""
    studies = [(study, cells) for study in STUDIES if (cells := study.cells())]
    parts = [BEGIN, summary(studies), TABLES, *(about(*each) for each in studies), NETWORKS, LITERAL]
    return "\n".join([*parts, about_literal(studies), ELSEWHERE, elsewhere(), SOURCES])


def faithful(study: Study, cells: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of what llama.cpp computes as it is."""
    return [cell for name, cell in cells.items() if "refused" not in cell and not study.ways[name].literal]


def summary(studies: list[tuple[Study, dict[str, dict[str, Any]]]]) -> str:
    """How far perplexities are apart at most."""
    cells = [cell for each in studies for cell in faithful(*each)]
    most = {name: max(abs(apart(cell, name)) for cell in cells) for name in ("exact", "default")}
    versions = cells[0]["versions_of_engines"]
    tokenized = [cell["ids"] for cell in cells]
    return (
        f"Of {len(cells)} files the perplexity in llama.cpp is that of transformers within {most['exact']:.1e} of it (exact) and {most['default']:.1e} (default). "
        f"The library is that of xllamacpp {versions['xllamacpp']}, the files are by gguf {versions['gguf']}; {cells[0]['date']}, {cells[0]['machine']['processor']}, one thread. "
        f"In {sum(each['same'] for each in tokenized)} of them llama.cpp's tokenizer gives the same ids as transformers' for the first {tokenized[0]['of_characters']:,} characters of the text.\n"
    )


def apart(cell: dict[str, Any], name: str) -> float:
    """How much larger the perplexity is in llama.cpp, as a share."""
    found = perplexities(cell)
    return found[name] / found["transformers"] - 1


def furthest(cell: dict[str, Any], name: str) -> float:
    """The same for the row where it is furthest from none."""
    tokens = cell["seq_len"] - 1
    rows = [
        (ours - theirs) / tokens
        for ours, theirs in zip(cell["losses"][name], cell["losses"]["transformers"], strict=True)
    ]
    return max((math.expm1(row) for row in rows), key=abs)


def way_of(cell: dict[str, Any]) -> str:
    """What is replaced by what."""
    options = dict(cell.get("options") or {})
    if not options:
        return "nothing: the original"
    kind = options.pop("kind")
    name = str(make_kind(kind, options)) if kind in KINDS else "affine, without bias"
    targets = "MLPs" if cell["target"] == "mlp" else f"{cell['target']}s"
    return f"{targets} {', '.join(map(str, cell['blocks']))}: {name}"


def about(study: Study, cells: dict[str, dict[str, Any]]) -> str:
    """The cells of a model."""
    rows = []
    for cell in faithful(study, cells):
        differences, found = cell["differences"], perplexities(cell)
        rows.append(
            [
                way_of(cell),
                f"{cell['architecture']}, {cell['layers']}",
                f"{cell['parameters']:,}",
                f"{cell['parameters_in_file']:,}",
                f"{found['transformers']:.4f}",
                *(f"{apart(cell, name):+.1e} ({furthest(cell, name):+.1e})" for name in ("exact", "default")),
                *(f"{differences[name]['log_probabilities']:.1e}" for name in ("exact", "default")),
                *(
                    f"{differences[name]['same_first'] / (cell['rows'] * cell['seq_len']):.3%}"
                    for name in ("exact", "default")
                ),
            ]
        )
    headings = ["replaced", "layers in the file", "parameters", "in the file", "perplexity", "exact", "default"]
    headings += ["log-probability, exact", "default", "same first, exact", "default"]
    refused = [f"- {way_of(cell)}" for cell in cells.values() if "refused" in cell]
    first = next(iter(cells.values()))
    return (
        f"## {study.model}\n\nRows of {study.seq_len}; fitted on {study.tokens_fitted:,} tokens of {study.fit}, scored on {first['rows'] * (study.seq_len - 1):,} tokens of {study.score}.\n\n"
        + table(headings, rows)
        + (
            "\n\nNo layer of llama.cpp's `llama` and `deci` computes these, and `gguf_file.py` refuses them:\n\n"
            + "\n".join(refused)
            if refused
            else ""
        )
        + "\n"
    )


def about_literal(studies: list[tuple[Study, dict[str, dict[str, Any]]]]) -> str:
    """What llama.cpp computes otherwise, beside what it computes instead."""
    rows = []
    cells = studies[0][1]
    for name, said, instead in (
        ("drop-mlps-no-width", "`feed_forward_length` 0 in a layer", "drop-blocks-of-these-mlps"),
        ("window-attentions", "`attention.sliding_window` in architecture `llama`", "original"),
    ):
        if {name, instead} <= cells.keys():
            cell, found = cells[name], perplexities(cells[name])
            rows.append(
                [
                    way_of(cell),
                    said,
                    f"{found['transformers']:.4f}",
                    f"{found['exact']:.4f}",
                    f"{perplexities(cells[instead])['transformers']:.4f}, {way_of(cells[instead])}",
                ]
            )
    text = table(["replaced", "said by", "perplexity in transformers", "in llama.cpp", "the same as"], rows) + "\n"
    if "window-attentions" in cells:
        stock = cells["window-attentions"]["stock"]
        text += (
            "\nWith a feed-forward length of 0 the layer's attention is computed and thrown away. A window of all attentions is a stock checkpoint in transformers all the same: the one above was saved "
            f"with `model_type` mistral and `sliding_window`, and loaded as {stock['architecture']} it differs from ours by at most {stock['largest_difference']:.1e} in any logit of {stock['rows']} rows.\n"
        )
    return text


def elsewhere() -> str:
    """A row for each kind and target."""
    deci = "`no_op` in all three"
    rows = [
        ["`drop`, `folded`", "block", "stock", "`llama`: measured", "as the original"],
        ["`mean`", "block", "own code", "`llama`, a bias: measured", "not found"],
        ["`drop`", "attention", "own code", "`deci`: measured", deci],
        ["`drop`", "MLP", "own code", "`deci`, a network of zeros: measured", deci],
        ["`mean`", "attention", "own code", "`deci`, a bias: measured", "not found"],
        ["`mean`", "MLP", "own code", "`deci`, a bias: not measured", "not found"],
        [
            "`affine` without bias",
            "attention",
            "own code",
            "`deci`: measured",
            "TensorRT-LLM, MLX-LM: `replace_with_linear`",
        ],
        [
            "`affine`",
            "attention",
            "own code",
            "`deci`, a layer more: measured",
            "MLX-LM where all attentions have biases",
        ],
        ["`affine`", "MLP", "own code", "`deci`, a layer more: measured", "MLX-LM where all MLPs have biases"],
        ["`affine`", "block", "own code", "none: all layers read through a norm", "not found"],
        ["`filter`", "attention, block", "own code", "none", "not found"],
        [
            "`bounded`, window alone, the same for all",
            "attention",
            "stock, as a Mistral: measured",
            "none in `llama`: measured",
            "vLLM has sliding windows",
        ],
        ["`bounded`, all else", "attention", "own code", "none", "not found"],
    ]
    return table(["kind", "target", "transformers", "llama.cpp", "vLLM, TensorRT-LLM, MLX-LM"], rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")

"""With its blocks on disk and gone through one by one, a model gives the numbers that it gives in memory."""

import filecmp
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import rectilinear
from rectilinear import Loading, Measurement, Rows, find_blocks
from rectilinear.models.load import load_model
from rectilinear.models.logits import row_logits
from tests import conftest
from tests.families import TINY, build, token_rows

ROWS = {"rows": Rows(max_tokens=1024, seq_len=32), "progress": False}


@pytest.mark.parametrize("family", TINY)
def test_every_architecture_is_measured_the_same(family, tmp_path):
    build(family).save_pretrained(tmp_path)
    measurement = Measurement(target=("block", "attention", "mlp"))
    usual, streamed = (
        rectilinear.measure(
            load_model(tmp_path, Loading(stream=stream)), token_rows(40), measurement, batch_size=7, progress=False
        )
        for stream in (False, True)
    )
    assert streamed.to_json() == usual.to_json()


@pytest.mark.parametrize(
    "changes",
    [{"convention": "paper"}, {"folds": 1}, {"target": "attention"}, {"pairs": True}, {"products": "float32"}],
)
def test_it_is_measured_the_same_in_any_way(tiny_checkpoint, text_file, changes):
    usual, streamed = (
        rectilinear.measure(
            str(tiny_checkpoint), text_file, Measurement(**changes), loading=Loading(stream=stream), **ROWS
        )
        for stream in (False, True)
    )
    assert streamed.to_json() == usual.to_json()


def test_padded_batches_of_several_lengths_are_measured_the_same(tiny_llama):
    def batches():
        for length in (30, 17, 23, 30):
            ids = token_rows(8, length, seed=length)
            yield {"input_ids": ids, "attention_mask": (torch.arange(length) < length - 5 * (ids[:, :1] % 2)).long()}

    usual, streamed = (
        rectilinear.measure(
            tiny_llama, DataLoader([*batches()], batch_size=None), loading=Loading(stream=stream), progress=False
        )
        for stream in (False, True)
    )
    assert streamed.blocks == usual.blocks


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "affine", "target": "attention", "blocks": (0, 2)},
        {"kind": "filter", "target": "attention", "count": 1},
        {"kind": "affine", "target": "mlp", "count": 1, "select": "loss"},
        {"kind": "drop", "blocks": (1,)},
        {"kind": "folded", "blocks": (1,)},
        {"kind": "bounded", "target": "attention", "blocks": (0, 1), "window": 3, "centroids": 2},
    ],
    ids=lambda options: options["kind"],
)
def test_it_is_linearized_to_the_same_bytes(tiny_checkpoint, text_file, tmp_path, options, reload_here):
    for name, stream in (("usual", False), ("streamed", True)):
        conftest.linearize(
            str(tiny_checkpoint), text_file, stream=stream, out=tmp_path / name, max_tokens=1024, seq_len=32, **options
        )
    names = sorted(path.name for path in (tmp_path / "usual").iterdir())
    assert filecmp.cmpfiles(tmp_path / "usual", tmp_path / "streamed", names, shallow=False) == (names, [], [])


def test_what_is_written_in_parts_loads_in_a_fresh_process(tiny_checkpoint, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr("rectilinear.models.export._STREAMED", "10KB")
    options = {"kind": "affine", "target": "attention", "blocks": (1,), "max_tokens": 1024, "seq_len": 32}
    made = conftest.linearize(str(tiny_checkpoint), text_file, stream=True, out=tmp_path / "new", **options)
    assert len([*(tmp_path / "new").glob("model-*.safetensors")]) > 1
    ids = token_rows(2)
    torch.testing.assert_close(
        row_logits(made.model, ids),
        row_logits(load_model(tmp_path / "new"), ids),
    )


def test_it_is_evaluated_the_same(tiny_checkpoint, text_file):
    found = [
        rectilinear.evaluate(str(tiny_checkpoint), text_file, loading=Loading(stream=stream), **ROWS)
        for stream in (False, True)
    ]
    assert found[0].perplexity == found[1].perplexity


# Runs in a process of its own, whose memory nothing else has touched: megabytes of its own after each block.
WALK = """
import sys
import torch
from rectilinear import Loading, find_blocks
from rectilinear.models.load import load_model
from rectilinear.models.walk import Walk

model = load_model(sys.argv[1], Loading(device="cpu", dtype="float32", stream=True), head=True)
walk = Walk(model, find_blocks(model), [torch.randint(0, 500, (1, 64))])
for depth in range(len(walk.stack)):
    walk.advance(depth + 1)
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(int(status["RssAnon"].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_memory_does_not_grow_with_depth(tmp_path):
    """Of a C library that keeps what is freed, in pieces, it would be half of each block in float32."""
    sizes = {"vocab_size": 500, "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=8)).bfloat16()
    block = sum(parameter.numel() for parameter in find_blocks(model).blocks[0].parameters()) * 4 / 2**20
    model.save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", WALK, str(tmp_path)], capture_output=True, text=True, check=True)
    first, *_, last = map(int, done.stdout.split())
    assert last - first < block / 2

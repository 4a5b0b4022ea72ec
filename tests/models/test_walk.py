"""A walk gives what whole passes give, in any architecture, with weights in memory or on disk; or it is not taken."""

import errno
import os
from collections import Counter
from contextlib import closing

import pytest
import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from torch import nn

import rectilinear
from rectilinear import JobError, Loading, RequestError, find_blocks
from rectilinear.models import state_store
from rectilinear.models.load import load_model
from rectilinear.models.logits import row_logits
from rectilinear.models.offload import in_memory, on_disk
from rectilinear.models.state_store import StateStore
from rectilinear.models.surgery import swapped
from rectilinear.models.walk import Walk, check_resumes
from tests.families import TINY, build, token_rows

BATCHES = token_rows(6).split(2)


@pytest.fixture(scope="module", params=TINY)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function that saves a tiny model of a family, and gives its folder."""
    folders = {}

    def save(family, **options):
        key = family, *options.values()
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(family)
            build(family).save_pretrained(folders[key], **options)
        return folders[key]

    return save


def whole_passes(model):
    """What blocks give for each batch, and the model's logits, in passes from beginning to end."""
    states, handles = [], []
    for block in find_blocks(model):
        after = lambda module, args, output: states.append(output if torch.is_tensor(output) else output[0])  # noqa: E731
        handles.append(block.register_forward_hook(after))
    with torch.no_grad():
        logits = [model(batch).logits for batch in BATCHES]
    for handle in handles:
        handle.remove()
    count = len(handles)
    return [[states[batch * count + index] for batch in range(len(BATCHES))] for index in range(count)], logits


def walked(model, edits=None):
    """The same along a walk."""
    stack = find_blocks(model)
    states = []
    with closing(Walk(model, stack, BATCHES)) as walk:
        for index in range(len(stack)):
            walk.advance(index + 1, edits or {})
            states.append([walk.states[batch].clone() for batch in range(len(BATCHES))])
        logits = []
        for number, batch in enumerate(BATCHES):
            with swapped(model, edits or {}), walk.resumed(number):
                logits.append(row_logits(model, batch))
    return states, logits


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_every_architecture_gives_what_it_gives_in_whole_passes(family):
    model = build(family)
    assert check_resumes(model, find_blocks(model), BATCHES[0]) is None
    assert_equal(walked(model), whole_passes(model))


def test_the_model_is_left_as_it_was(family):
    model = build(family)
    before = [{**vars(module)} for module in model.modules()]
    logits = build(family)(BATCHES[0]).logits
    walked(model)
    assert [{**vars(module)} for module in model.modules()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert_equal(model(BATCHES[0]).logits, logits)


def test_an_edited_model_is_gone_through_as_it_is_edited():
    model, other = build("llama"), build("llama")
    edits = {"model.layers.1.mlp": nn.Identity(), "model.layers.2.self_attn.o_proj": nn.Linear(24, 24)}
    for path, module in edits.items():
        other.set_submodule(path, module)
    assert_equal(walked(model, edits), whole_passes(other))


def test_a_branch_goes_on_by_itself():
    model = build("gpt2")
    stack = find_blocks(model)
    walk = Walk(model, stack, BATCHES)
    walk.advance(1)
    branch = walk.branch()
    branch.advance(3, {"transformer.h.1.mlp": nn.Identity()})
    assert (walk.depth, branch.depth) == (1, 3)
    walk.advance(3)
    states, _ = whole_passes(model)
    assert_equal([walk.states[batch] for batch in range(3)], states[2])
    assert not torch.equal(branch.states[0], walk.states[0])


def test_it_is_left_so_where_a_pass_fails():
    model = build("llama")
    before = [{**vars(module)} for module in model.modules()]
    with closing(Walk(model, find_blocks(model), BATCHES)) as walk:
        walk.advance(2)
        with pytest.raises(ValueError, match="enough"), walk.resumed(0):
            raise ValueError("enough")
    assert [{**vars(module)} for module in model.modules()] == before


class InPlace(nn.Module):
    """A block that writes over what it is given."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden_states, **kwargs):
        return hidden_states.copy_(self.block(hidden_states.clone(), **kwargs))


def test_a_block_that_writes_over_its_input_leaves_the_states_as_they_are():
    model, usual = build("llama"), build("llama")
    model.model.layers = nn.ModuleList(map(InPlace, model.model.layers))
    states, _ = whole_passes(usual)
    with closing(Walk(model, find_blocks(model), BATCHES)) as walk:
        walk.advance(1)
        for _ in range(2):
            with walk.resumed(0), torch.no_grad():
                assert_equal(model(BATCHES[0]).logits, usual(BATCHES[0]).logits)
        assert_equal(walk.states[0], states[0][0])


@pytest.mark.parametrize("size", [2**20, 0])
def test_states_are_kept_in_memory_or_in_a_file(size):
    model = build("gemma3")
    stack = find_blocks(model)
    walk = Walk(model, stack, BATCHES, limit=size)
    walk.advance(2)
    assert walk.states.in_file is (size == 0)
    branch = walk.branch()
    walk.advance(3)
    states, _ = whole_passes(model)
    for batch in range(3):
        assert_equal(walk.states[batch], states[2][batch])
        assert_equal(branch.states[batch], states[1][batch])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_file_keeps_any_precision(dtype):
    states = torch.randn(3, 5, 7).to(dtype)
    store = StateStore(limit=0)
    store[0], store[1] = states[:2], states[2:]
    store[0] = states[1:]
    assert_equal([store[0], store[1]], [states[1:], states[2:]])


def test_no_more_is_in_memory_than_may_be_and_files_are_few(monkeypatch):
    monkeypatch.setattr(state_store, "_PART", 2**12)
    batches = [torch.randn(1, length, 8) for length in (2, 60, 30, 1, 300)]
    store = StateStore(limit=batches[0].nbytes + batches[2].nbytes)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number, states in enumerate(batches):
        store[number] = states
    assert store.in_file
    assert_equal([store[number] for number in range(5)], batches)
    if before:
        assert len(os.listdir("/proc/self/fd")) - before == 2  # of 4 KiB, and of one that is larger


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_states_that_no_disk_has_room_for_are_refused(monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(JobError, match=r"no room for hidden states in .* \(No space left on device\); try fewer"):
        StateStore(limit=0)[0] = torch.zeros(3)


class Skipping(nn.Module):
    """A decoder whose last block also takes what the first one gave."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(128, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, ids, use_cache=False):
        first = self.layers[0](self.embed(ids))
        return self.layers[2](self.layers[1](first) + first)


class Shared(Skipping):
    """A decoder that runs one block three times."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8)] * 3)


@pytest.mark.parametrize(
    ("kind", "reason"), [(Skipping, "block 2 depends on more than the block before it"), (Shared, "share one module")]
)
def test_what_cannot_be_resumed_is_told_and_measured_in_whole_passes(kind, reason):
    torch.manual_seed(0)
    model, rows = kind(), token_rows(40)
    assert reason in check_resumes(model, find_blocks(model), rows[:1])
    usual = rectilinear.measure(model, rows, progress=False)
    streamed = rectilinear.measure(model, rows, loading=Loading(stream=True), progress=False)
    assert streamed.blocks == usual.blocks
    assert any("in one pass, as without `stream`" in warning and reason in warning for warning in streamed.warnings)


def test_weights_stay_on_disk_but_for_a_block(checkpoint, family):
    model = load_model(checkpoint(family), Loading(stream=True))
    stack = find_blocks(model)
    assert all(map(on_disk, stack))
    assert not any(parameter.is_meta for name, parameter in model.named_parameters() if stack.path not in name)
    with in_memory(stack.blocks[1]):
        assert not any(parameter.is_meta for parameter in stack.blocks[1].parameters())
        assert all(parameter.is_meta for parameter in stack.blocks[2].parameters())
    assert all(parameter.is_meta for parameter in stack.blocks[1].parameters())
    assert_equal(walked(model), whole_passes(build(family)))
    assert all(parameter.is_meta for block in stack for parameter in block.parameters())


@pytest.fixture
def reads(monkeypatch):
    """How often each weight is read from disk."""
    counts, own = Counter(), OffloadedWeightsLoader.__getitem__

    def read(self, key):
        weight = own(self, key)
        counts[key] += 1
        return weight

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", read)
    return counts


def test_a_walk_reads_each_weight_once(checkpoint, reads):
    model = load_model(checkpoint("llama", max_shard_size="20KB"), Loading(stream=True))
    reads.clear()
    walked(model)
    assert {*reads.values()} == {1}
    assert len(reads) == sum(1 for block in find_blocks(model) for _ in block.parameters())


def test_a_walk_that_is_cut_short_lets_its_weights_go(checkpoint):
    model = load_model(checkpoint("llama"), Loading(stream=True))
    with closing(Walk(model, find_blocks(model), BATCHES)) as walk:
        walk.advance(1)
        walk.step(0)
        assert not any(parameter.is_meta for parameter in model.model.layers[1].parameters())
    assert all(parameter.is_meta for parameter in model.model.layers.parameters())


def test_a_model_is_on_disk_by_itself_where_memory_does_not_suffice(checkpoint, monkeypatch):
    folder = checkpoint("llama")
    size = sum(parameter.nbytes for parameter in build("llama").parameters())
    for free, expected in ((size + 1, False), (size, True)):
        monkeypatch.setattr("rectilinear.models.offload.available_memory", lambda free=free: free)
        assert on_disk(load_model(folder, Loading(device="cpu"))) is expected
        assert not on_disk(load_model(folder, Loading(device="cpu", stream=False)))


def test_what_is_no_checkpoint_of_weights_cannot_be_left_on_disk(tmp_path, checkpoint):
    from peft import LoraConfig, get_peft_model

    model = build("llama")
    model.name_or_path = str(checkpoint("llama"))
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(RequestError, match="expected `stream` with a causal language model and weights of its own"):
        load_model(tmp_path / "adapter", Loading(stream=True))
    with pytest.raises(RequestError, match="expected `stream` with a causal language model and weights of its own"):
        load_model(checkpoint("llama"), Loading(stream=True), any_kind=True)

"""Hooks hand over what a block was given and what it gave back, for every way blocks are written."""

import gc
import weakref

import pytest
import torch
from torch import nn

from rectilinear.errors import JobError
from rectilinear.models.capture import capture_blocks
from rectilinear.models.running import base_of, evaluating, run

WIDTH = 4


class Block(nn.Module):
    """y = x + 1 + index, so that what a block must have seen can be written down."""

    def __init__(self, index):
        super().__init__()
        self.step = index + 1

    def forward(self, hidden_states):
        return hidden_states + self.step


class TupleBlock(Block):
    def forward(self, hidden_states, attention_mask=None):
        return super().forward(hidden_states), None, "cache"


class ListBlock(Block):
    def forward(self, hidden_states):
        return [super().forward(hidden_states)]


class MappingBlock(Block):
    def forward(self, hidden_states):
        return {"hidden_states": super().forward(hidden_states), "weights": None}


class InPlaceBlock(Block):
    def forward(self, hidden_states):
        return hidden_states.add_(self.step)


class InPlaceViewBlock(Block):
    def forward(self, hidden_states):
        hidden_states.view(-1).add_(self.step)
        return hidden_states.clone()


class Model(nn.Module):
    """Three blocks and a final norm that doubles."""

    def __init__(self, block=Block, keyword=False):
        super().__init__()
        self.layers = nn.ModuleList(block(index) for index in range(3))
        self.norm = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.eye_(self.norm.weight)
        with torch.no_grad():
            self.norm.weight.mul_(2)
        self.keyword = keyword

    def forward(self, x):
        for layer in self.layers:
            y = layer(hidden_states=x) if self.keyword else layer(x)
            y = next(iter(y.values())) if isinstance(y, dict) else y
            x = y[0] if isinstance(y, (tuple, list)) else y
        return self.norm(x)


class Recorder(list):
    def __call__(self, index, x, y):
        self.append((index, x.clone(), y.clone()))


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def check(pairs, batches):
    """Blocks add 1, 2 and 3 in turn: block 0 sees x and gives x + 1, block 1 x + 1 and x + 3, ..."""
    expected = [(index, x + came, x + went) for x in batches for index, came, went in ((0, 0, 1), (1, 1, 3), (2, 3, 6))]
    assert [index for index, _, _ in pairs] == [index for index, _, _ in expected]
    for (_, x, y), (_, came, went) in zip(pairs, expected, strict=True):
        torch.testing.assert_close(x, came, rtol=0, atol=0)
        torch.testing.assert_close(y, went, rtol=0, atol=0)


@pytest.fixture
def batches():
    """Whole numbers, so that sums are exact."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(-9, 9, (2, 3, WIDTH), generator=generator).float() for _ in range(3)]


@pytest.mark.parametrize("keyword", [False, True], ids=["positional", "keyword"])
@pytest.mark.parametrize("block", [Block, TupleBlock, ListBlock, MappingBlock, InPlaceBlock, InPlaceViewBlock])
def test_every_batch_gives_input_and_output(block, keyword, batches):
    model, pairs = Model(block, keyword), Recorder()
    with torch.no_grad(), capture_blocks(model.layers, pairs):
        for batch in batches:
            model(batch.clone())
    check(pairs, batches)


def test_keyword_input_is_told_from_a_floating_mask(batches):
    """A tensor that comes before hidden_states= by position of the keywords is not taken for it."""

    class Masked(Block):
        def forward(self, *, attention_mask, hidden_states):
            return super().forward(hidden_states)

    block, pairs = Masked(0), Recorder()
    with capture_blocks([block], pairs):
        block(attention_mask=torch.full((2, 3), -7.0), hidden_states=batches[0])
    torch.testing.assert_close(pairs[0][1], batches[0])


def test_inference_mode(batches):
    model, pairs = Model(), Recorder()
    with torch.inference_mode(), capture_blocks(model.layers, pairs):
        model(batches[0].clone())
    check(pairs, batches[:1])


def test_a_block_that_stands_twice(batches):
    block, pairs = Block(0), Recorder()
    with capture_blocks([block, block], pairs):
        block(block(batches[0]))
    assert [index for index, _, _ in pairs] == [0, 1]
    torch.testing.assert_close(pairs[1][1], batches[0] + 1)


def test_final_takes_the_last_output_after_the_final_norm(batches):
    model, pairs = Model(), Recorder()
    with torch.no_grad(), capture_blocks(model.layers, pairs, final=model.norm):
        for batch in batches:
            model(batch)
    assert [index for index, _, _ in pairs] == [0, 1, 2] * 3
    for batch, (_, x, y) in zip(batches, pairs[2::3], strict=True):
        torch.testing.assert_close(x, batch + 3)
        torch.testing.assert_close(y, 2 * (batch + 6))
    torch.testing.assert_close(pairs[1][2], batches[0] + 3)  # others are as they were


def test_llama_against_its_own_hidden_states(tiny_llama):
    """transformers reports each block's input, and the last state after the final norm."""
    ids = torch.arange(40).view(2, 20)
    pairs, final = Recorder(), Recorder()
    with capture_blocks(tiny_llama.model.layers, pairs):
        run(tiny_llama, ids)
    with capture_blocks(tiny_llama.model.layers, final, final=base_of(tiny_llama)):
        run(tiny_llama, {"input_ids": ids})
    with torch.no_grad():
        states = tiny_llama(ids, output_hidden_states=True).hidden_states
    for index in range(3):
        assert torch.equal(pairs[index][1], states[index])
    assert torch.equal(pairs[0][2], states[1])
    assert torch.equal(pairs[1][2], states[2])
    assert torch.equal(final[2][2], states[3])
    assert torch.equal(tiny_llama.model.norm(pairs[2][2]), states[3])


def test_run_needs_neither_gradients_nor_logits(tiny_llama):
    reached, ids = [], torch.arange(20).view(1, 20)
    handle = tiny_llama.lm_head.register_forward_hook(lambda *_: reached.append("logits"))
    requires_grad = []
    with capture_blocks(tiny_llama.model.layers, lambda i, x, y: requires_grad.append(y.requires_grad)):
        run(tiny_llama, ids)
    handle.remove()
    assert reached == []
    assert requires_grad == [False] * 3


@pytest.mark.parametrize("where", ["consume", "forward", "body", "registration"])
def test_hooks_are_gone_after_an_exception(where, batches):
    model = Model()

    def fail(*_):
        raise ZeroDivisionError

    consume = fail if where == "consume" else Recorder()
    stack = [*model.layers, None] if where == "registration" else model.layers
    if where == "forward":
        model.layers[1].forward = fail

    def capture_and_run():
        with capture_blocks(stack, consume):
            assert hooks_of(model) == 6
            if where == "body":
                fail()
            model(batches[0])

    with pytest.raises(AttributeError if where == "registration" else ZeroDivisionError):
        capture_and_run()
    assert hooks_of(model) == 0


def test_hooks_of_others_stay(batches):
    model = Model()
    model.layers[0].register_forward_hook(lambda *_: None)
    with capture_blocks(model.layers, Recorder()):
        model(batches[0])
    assert hooks_of(model) == 1


def test_nothing_is_kept(batches):
    model, alive = Model(), []

    def consume(index, x, y):
        alive.extend((weakref.ref(x), weakref.ref(y)))

    with torch.no_grad(), capture_blocks(model.layers, consume):
        for batch in batches:
            model(batch.clone())
            gc.collect()
            assert not any(tensor() is not None for tensor in alive), "kept beyond its forward pass"
    assert len(alive) == 18


def test_nothing_is_kept_after_a_failed_pass(batches):
    model, alive = Model(), []

    def forward(hidden_states):
        alive.append(weakref.ref(hidden_states))
        raise ZeroDivisionError

    model.layers[1].forward = forward
    with torch.no_grad(), pytest.raises(ZeroDivisionError), capture_blocks(model.layers, Recorder()):
        model(batches[0].clone())
    gc.collect()
    assert [tensor() for tensor in alive] == [None]


@pytest.mark.parametrize("fails", [False, True])
def test_every_submodule_gets_its_mode_back(fails):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)), nn.Dropout())
    model.train()
    model[1].eval()
    model[1][1].train()
    before = [module.training for module in model.modules()]
    assert before == [True, True, False, False, True, True]
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: "text", "block 0: expected a tensor or a tuple that starts with one, got str"),
        (lambda x: (), "block 0: expected a tensor or a tuple that starts with one, got NoneType"),
        (lambda x: x[..., :2], "block 0: expected an output shaped like its input"),
    ],
)
def test_a_block_that_gives_no_such_tensor_is_named(forward, message, batches):
    block = Block(0)
    block.forward = forward
    with pytest.raises(JobError, match=message), capture_blocks([block], Recorder()):
        block(batches[0])


def test_a_block_that_is_given_no_tensor_is_named():
    block = Block(0)
    block.forward = lambda ids: ids.float()
    with pytest.raises(JobError, match="block 0: expected hidden states"), capture_blocks([block], Recorder()):
        block(torch.arange(3))

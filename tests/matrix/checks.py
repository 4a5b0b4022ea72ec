"""What a type of decoder can do here, each answer checked by a computation that the package has no part in."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import rectilinear
from rectilinear.errors import JobError, RequestError
from rectilinear.linearization.kinds import make_kind
from rectilinear.models import reload_check
from rectilinear.models.export import check_answer, decodes, write_checkpoint
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.linear_block import Entry, LinearBlock
from rectilinear.models.logits import row_logits
from rectilinear.models.running import evaluating
from tests import oracle
from tests.activations import stored
from tests.matrix.configurations import EXTRA_TOKENS, VOCABULARY, WIDTH, build

ROWS, LENGTH = 48, 16

#: Kinds and targets that are tried, by the name of the column.
EDITS = {
    "drop": ("drop", "block"),
    "affine": ("affine", "block"),
    "filter": ("filter", "block"),
    "drop attention": ("drop", "attention"),
    "filter attention": ("filter", "attention"),
    "affine mlp": ("affine", "mlp"),
}


class Wrong(Exception):
    """The package gave something that is not so, without a word."""


@dataclass(frozen=True)
class Answer:
    """How one thing went: ``ok``, ``refused`` (a line before any work), ``failed`` (a line after), ``wrong`` or
    ``traceback``, and why."""

    status: str
    reason: str = ""


def tokenizer():
    """One id a word: ``w4`` is 4."""
    words = {f"w{index}": index for index in range(VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="w3"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w3", pad_token="w2")


def token_rows(rows=ROWS, length=LENGTH, seed=0):
    """Random ids ``[rows, length]``, special ones left out."""
    return torch.randint(4, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@dataclass(eq=False)
class Subject:
    """A tiny model of a type, and what is tried with it."""

    model_type: str
    answers: dict[str, Answer] = field(default_factory=dict)

    @cached_property
    def model(self):
        return build(self.model_type)

    @cached_property
    def ids(self):
        return token_rows()

    @property
    def text(self):
        """The rows as texts."""
        return [" ".join(f"w{index}" for index in row) for row in self.ids.tolist()]

    @cached_property
    def stack(self):
        return find_blocks(self.model)

    def facts(self):
        """What the answers are of."""
        if self.answers["built"].status != "ok":
            return {}
        found = {"class": type(self.model).__name__}
        if self.answers["blocks"].status == "ok":
            found |= {"blocks": self.stack.path, "rule": self.stack.rule}
        return found

    def ask(self, name, question):
        """Write down how a question went."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.answers[name] = _answer(question)
        return self.answers[name].status == "ok"

    def all(self):
        """Try everything; by name, how it went."""
        if not self.ask("built", lambda: self.model):
            return self.answers
        self.ask("blocks", self.inspect)
        if self.answers["blocks"].status != "ok":
            return self.answers
        self.ask("measure", self.measure)
        self.ask("original", self.original)
        for name, (kind, target) in EDITS.items():
            self.answers[name] = self.edit(kind, target)
        return self.answers

    def inspect(self):
        assert len(self.stack) > 1

    def measure(self):
        """Scores equal those of stored float64 activations."""
        profile = rectilinear.measure(self.model, self.ids, rectilinear.Measurement(folds=2), progress=False)
        stored = self.activations()
        assert len(profile.blocks) == len(stored), f"{len(profile.blocks)} of {len(stored)} blocks"
        for block in profile.blocks:
            x, y = stored[block.index]
            for found, true in zip(
                (block.linearity.in_sample, block.update_linearity.in_sample), oracle.in_sample(x, y), strict=True
            ):
                if found is not None and abs(found - true) > 1e-5:
                    raise Wrong(f"block {block.index} scores {found:.6f}, where an SVD gives {true:.6f}")

    def activations(self):
        """Inputs and outputs of each block that runs, ``[tokens, width]`` each, of all its calls, by its index."""
        # Each row alone, so that nothing but its tokens can be in what it leaves; and no state from row to row.
        with evaluating(self.model):
            found = stored(
                self.stack.blocks, lambda row: run_uncached(self.model, row), self.ids[:, None], self._of_text
            )
        return {index: pair for index, pair in enumerate(found) if pair is not None}

    def _of_text(self, hidden):
        """``[LENGTH, width]`` of one row's hidden states, whatever their layout: several streams side by side."""
        start = EXTRA_TOKENS.get(self.model_type, 0)
        places = next(axis for axis, size in enumerate(hidden.shape) if size >= LENGTH and size != WIDTH)
        kept = hidden.movedim(places, 0)[start : start + LENGTH]
        return kept.reshape(LENGTH, -1)

    def original(self):
        """Transformers itself saves, loads and decodes the model as it is."""
        if why := decodes(self.model, self.ids[:4]):
            raise JobError(why)
        check_answer(self.reloaded(copy.deepcopy(self.model)), self.model.dtype)

    def reloaded(self, model, decode=True):
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(model, None, Path(folder))
            with evaluating(model):
                logits = row_logits(model, self.ids[:4]).float()
            remote = any(Path(folder).glob("*.py"))
            try:
                loaded = reload_check.load(folder, trust_remote_code=remote, dtype="auto").eval()
                return reload_check.compare(loaded, self.ids[:4], logits, decode)
            except Exception as error:  # as `check_reload` has it
                raise JobError(f"does not load in a fresh process ({type(error).__name__}: {error})") from error

    def edit(self, kind, target):
        """The first answer that is ok, over blocks; else what most of them have."""
        answers = []
        for index in _order(len(self.stack)):
            answers.append(_answer(lambda index=index: self.replace(kind, target, index)))
            if answers[-1].status in ("ok", "wrong", "traceback"):
                return answers[-1]
        return max(answers, key=answers.count)

    def replace(self, kind, target, index):
        """Replace a block, or a part of it, and see whether that is what came out, reloads and decodes."""
        made = rectilinear.linearize(
            self.model,
            self.text,
            make_kind(kind, {}),
            rectilinear.Selection(target=target, blocks=[index]),
            rows=rectilinear.CalibrationRows(max_tokens=ROWS * LENGTH, seq_len=LENGTH),
            tokenizer=tokenizer(),
            progress=False,
        )
        with torch.no_grad():
            logits = row_logits(made.model, self.ids[:4]).float()
        if not logits.isfinite().all():
            raise Wrong("the edited model's logits are not finite")
        if (logits - logits.mean((0, 1))).abs().max() < 1e-5 * logits.abs().max():
            raise Wrong("the edited model gives every token the same logits")
        self.check_place(made.model, target, index)
        if kind == "drop":
            self.check_dropped(made.model, target, index, logits)
        check_answer(self.reloaded(made.model, made.undecodable is None), self.model.dtype)

    def check_place(self, edited, target, index):
        """What was replaced as an attention mixes tokens, what was replaced as an MLP does not."""
        if target == "block":
            return
        (path,) = (path for path, module in edited.named_modules() if isinstance(module, LinearBlock))
        entries = [name for name, module in edited.named_modules() if isinstance(module, Entry)]
        if entries:
            self.check_span(entries[0], path, index)
            return
        mixes = self.mixes(self.model.get_submodule(path))
        if mixes != (target == "attention"):
            raise Wrong(f"{path} was replaced as {target}, and {'mixes' if mixes else 'does not mix'} tokens")

    def check_span(self, entry, path, index):
        """Two modules that were replaced with all between them: nothing but the input of the first is in the output."""
        entry, module, block = self.model.get_submodule(entry), self.model.get_submodule(path), self.stack.blocks[index]
        taken, given = [], []

        def other(module, args, kwargs):
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            return ((x + noise, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x + noise})

        for changed in (False, True):
            handles = [module.register_forward_hook(lambda *call: given.append(call[2].clone()))]
            if changed:
                handles.append(block.register_forward_pre_hook(other, with_kwargs=True))
                handles.append(entry.register_forward_pre_hook(lambda *_: (taken[0],)))
            else:
                handles.append(entry.register_forward_pre_hook(lambda _, args: taken.append(args[0].clone())))
            with torch.no_grad():
                run_uncached(self.model, self.ids[:1])
            for handle in handles:
                handle.remove()
        if not torch.allclose(*given, atol=1e-5 * float(given[0].abs().max())):
            raise Wrong(f"{path} was replaced with all from its entry on, and depends on more than that takes")

    def mixes(self, module):
        """Whether what a module gives for a token depends on others: its input is changed at the first token."""
        outputs = []

        def change(place):
            def hook(module, args, kwargs):
                moved = False

                def shift(value):
                    nonlocal moved
                    if moved or not isinstance(value, torch.Tensor) or not value.is_floating_point():
                        return value
                    moved = True
                    value = value.clone()
                    value.view(LENGTH, -1)[place] += 1.0
                    return value

                args = tuple(map(shift, args))
                return args, {name: shift(value) for name, value in kwargs.items()}

            return hook

        def note(module, args, kwargs, output):
            outputs.append((output if isinstance(output, torch.Tensor) else _values(output)[0]).reshape(LENGTH, -1))

        for place in (slice(0, 0), slice(0, 1)):
            handles = [
                module.register_forward_pre_hook(change(place), with_kwargs=True),
                module.register_forward_hook(note, with_kwargs=True),
            ]
            with torch.no_grad():
                run_uncached(self.model, self.ids[:1])
            for handle in handles:
                handle.remove()
        same, moved = outputs[0], outputs[len(outputs) // 2]
        return not torch.allclose(same[1:], moved[1:], atol=1e-6 * float(same.abs().max()))

    def check_dropped(self, edited, target, index, logits):
        """The edited model computes what the original does whose block hands on its input, or whose part gives 0."""
        module, has_side_outputs = self.stack.blocks[index], False
        if target != "block":
            (path,) = (path for path, found in edited.named_modules() if isinstance(found, LinearBlock))
            module = self.model.get_submodule(path)

        def hook(module, args, kwargs, output):
            nonlocal has_side_outputs
            given = [*args, *kwargs.values()]
            x = next(value for value in given if isinstance(value, torch.Tensor) and value.is_floating_point())
            x = kwargs.get("hidden_states", x)
            first = x if target == "block" else torch.zeros_like(_first(output))
            if isinstance(output, torch.Tensor):
                return first
            has_side_outputs = has_side_outputs or any(isinstance(value, torch.Tensor) for value in output[1:])
            return [first, *output[1:]] if isinstance(output, list) else (first, *output[1:])

        handle = module.register_forward_hook(hook, with_kwargs=True)
        with torch.no_grad():
            wanted = run_uncached(self.model, self.ids[:4]).logits.float()
        handle.remove()
        difference = float((wanted - logits).abs().max() / wanted.abs().max())
        if difference > 1e-4 and not has_side_outputs:
            raise Wrong(f"logits are {difference:.1e} from the original's without this part")


def run_uncached(model, ids):
    """A pass without a cache, as transformers has it."""
    try:
        return model(ids, use_cache=False)
    except TypeError:
        return model(ids)


def _first(output):
    return output if isinstance(output, torch.Tensor) else _values(output)[0]


def _values(output):
    return [*output.values()] if hasattr(output, "values") else [*output]


def _order(count):
    middle = [*range(1, count - 1)]
    return [*middle, count - 1, 0]


def _answer(question):
    try:
        question()
    except Wrong as error:
        return Answer("wrong", str(error))
    except RequestError as error:
        return Answer("refused", str(error))
    except JobError as error:
        return Answer("failed", str(error))
    except Exception as error:
        return Answer("traceback", f"{type(error).__name__}: {error}"[:300])
    return Answer("ok")

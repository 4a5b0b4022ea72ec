"""Models whose code comes with them: trusted, they are measured and shortened; not trusted, none of it runs."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

import rectilinear
from rectilinear import Measurement, find_blocks
from rectilinear.models.settings import Loading
from tests import oracle
from tests.activations import stored
from tests.conftest import linearize

FOLDER = Path(__file__).with_name("remote")
STYLES = {"sequence_first": "SequenceFirst", "own_names": "OwnNames"}


@pytest.fixture(scope="module", params=STYLES)
def remote(request, tiny_tokenizer, tmp_path_factory):
    """A checkpoint with code of its own, and the model that it was saved from."""
    file = FOLDER / f"modeling_{request.param}.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    prefix = STYLES[request.param]
    config = getattr(module, f"{prefix}Config")()
    config.auto_map = {
        "AutoConfig": f"{file.stem}.{prefix}Config",
        "AutoModelForCausalLM": f"{file.stem}.{prefix}ForCausalLM",
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(module, f"{prefix}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("remote") / request.param
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    shutil.copy(file, folder)
    return folder, model, request.param


@pytest.mark.usefixtures("load")
def test_trusted_code_is_measured(remote):
    folder, model, style = remote
    # As many rows as tokens, so that only trying tells which is which.
    rows = torch.randint(128, (24, 24), generator=torch.Generator().manual_seed(1))
    profile = rectilinear.measure(
        folder, rows, Measurement(folds=2), loading=Loading(trust_remote_code=True, device="cpu"), progress=False
    )
    axis = 1 if style == "sequence_first" else 0
    expected = stored(find_blocks(model).blocks, model, rows[:, None], lambda hidden: hidden.select(axis, 0))
    assert len(profile.blocks) == len(expected) == 3
    for block, (x, y) in zip(profile.blocks, expected, strict=True):
        found = block.linearity.in_sample, block.update_linearity.in_sample
        assert found == pytest.approx(oracle.in_sample(x, y), abs=1e-6)


@pytest.mark.usefixtures("load")
def test_trusted_code_loses_a_block(remote, text_file, load, tmp_path):
    folder, model, _ = remote
    made = linearize(
        folder, text_file, kind="drop", blocks=[1], max_tokens=480, seq_len=16, trust_remote_code=True, device="cpu"
    )
    assert len(find_blocks(made.model)) == 2
    ids = torch.arange(12)[None]
    handle = find_blocks(model).blocks[1].register_forward_hook(lambda module, args, output: (args[0], *output[1:]))
    with torch.no_grad():
        expected, found = model(ids).logits, made.model(ids).logits
    handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_code_that_is_not_trusted_is_refused(remote):
    folder, _, _ = remote
    with pytest.raises(rectilinear.RequestError, match="trust_remote_code"):
        rectilinear.measure(folder, torch.arange(40).view(2, 20), progress=False)

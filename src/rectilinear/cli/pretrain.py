"""``rectilinear pretrain``."""

from __future__ import annotations

from rectilinear.cli.panels import RuntimeOptions, TextOption, TextOptions, WorkOptions
from rectilinear.errors import RequestError
from rectilinear.models.hub import check_upload, push
from rectilinear.models.settings import Upload
from rectilinear.runs import ResumableOutput
from rectilinear.training.settings import Corpus, Monitoring, Recipe


def pretrain(
    *,
    text: TextOption,
    recipe: WorkOptions[Recipe] = Recipe(),
    corpus: TextOptions[Corpus] = Corpus(),
    monitoring: RuntimeOptions[Monitoring] = Monitoring(),
    output: RuntimeOptions[ResumableOutput] = ResumableOutput(),
    upload: RuntimeOptions[Upload] = Upload(),
) -> None:
    """Pretrain a decoder from random weights, with or without a penalty on neighbouring hidden states.

    Leaves a checkpoint, training.json, dynamics.json and a model card in the folder of --out, which it needs.
    For several processes: torchrun --nproc-per-node 2 -m rectilinear pretrain ..., or accelerate launch.

    Example: rectilinear pretrain --preset mistral-1m --text stories --max-steps 10 --seq-len 64 --regularizer cosine
    --out run
    """
    if output.out is None:
        raise RequestError("expected `out`, a folder for the run and its checkpoint, got none")

    check_upload(upload)

    from accelerate import PartialState

    import rectilinear
    from rectilinear.report.terminal import say, show

    trained = rectilinear.pretrain(
        text,
        recipe,
        corpus,
        out=output.out,
        monitoring=monitoring,
        resume=output.resume,
        overwrite=output.overwrite,
    )
    if PartialState().is_main_process:
        show(trained)
        probed = "" if monitoring.probe_every == 0 else "dynamics.json, "
        say(f"wrote the checkpoint, training.json, {probed}and README.md to {output.out}")
        if where := push(output.out, upload):
            say(f"uploaded it to {where}")

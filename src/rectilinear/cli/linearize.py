"""``rectilinear linearize``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from rectilinear.cli import options
from rectilinear.cli.legacy import check_out, progress, stdout
from rectilinear.cli.options import DTypeName, KindName, SelectName, TargetName, parse_batch_size
from rectilinear.linearization.defaults import RATES, TAPS

_USUAL_RATES = ",".join(f"{rate:g}" for rate in RATES)


def linearize(
    context: typer.Context,
    model: options.Model,
    text: options.Text,
    out: options.RequiredOut,
    kind: options.Kind = KindName.filter,
    target: options.Target = TargetName.block,
    blocks: options.Indices = None,
    count: options.Count = None,
    budget: options.Budget = None,
    max_loss_increase: options.MaxLossIncrease = None,
    plan: options.Plan = None,
    select: options.Select = SelectName.score,
    rank: options.Rank = None,
    taps: options.Taps = TAPS,
    rates: options.Rates = _USUAL_RATES,
    merge: options.Merge = False,
    heal_steps: options.HealSteps = 0,
    heal_learning_rate: options.HealLearningRate = 1e-3,
    heal_logits: options.HealLogits = 0.0,
    max_tokens: options.MaxTokens = 300_000,
    seq_len: options.SeqLen = 256,
    folds: options.Folds = 4,
    stack: options.Stack = None,
    column: options.Column = "text",
    config: options.Config = None,
    split: options.Split = "train",
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.DType = DTypeName.auto,
    batch_size: options.BatchSize = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Replace blocks, attentions or MLPs by something linear, and write a checkpoint that works.

    Which ones: one of --blocks, --count, --budget, --max-loss-increase and --plan.

    With --heal-steps, a run that was stopped goes on from its last checkpoint, in OUT.heal, when the same command
    is run again.

    Example: rectilinear linearize storyteller --text stories --kind filter --count 2 --out smaller
    """
    options.refuse_idle(
        context,
        (plan is not None, "with --plan", ("kind", "target", "rank", "taps", "rates", "merge", "select")),
        (blocks is not None, "with --blocks", ("select",)),
        (kind is not KindName.filter, f"with --kind {kind.value}", ("taps", "rates")),
        (not heal_steps, "without --heal-steps", ("heal_learning_rate", "heal_logits")),
    )
    out = out.resolve()
    check_out(out, overwrite)
    rows_at_once = parse_batch_size(batch_size)
    indices = options.parse_indices(blocks)
    share = options.parse_share(budget)
    decays = options.parse_rates(rates)
    checkpoints = out.with_name(f"{out.name}.heal") if heal_steps else None

    import rectilinear
    from rectilinear.linearization.checkpoints import discard_healing
    from rectilinear.report.tables import print_plan

    with _pointing_to(checkpoints), progress() as report:
        linearized = rectilinear.linearize(
            model,
            text,
            kind=kind.value,
            target=target.value,
            blocks=indices,
            count=count,
            budget=share,
            max_loss_increase=max_loss_increase,
            plan=plan,
            select=select.value,
            rank=rank,
            taps=taps,
            rates=decays,
            merge=merge,
            stack=stack,
            max_tokens=max_tokens,
            seq_len=seq_len,
            folds=folds,
            heal_steps=heal_steps,
            heal_learning_rate=heal_learning_rate,
            heal_logits=heal_logits,
            heal_folder=checkpoints,
            heal_overwrite=overwrite,
            batch_size=rows_at_once,
            device=device,
            dtype=dtype.value,
            revision=revision,
            trust_remote_code=trust_remote_code,
            column=column,
            config=config,
            split=split,
            seed=seed,
            out=out,
            progress=report,
        )
        linearized.save(out)
        if checkpoints:
            discard_healing(checkpoints)
    print_plan(linearized.plan, stdout())
    print(f"wrote the checkpoint, plan.json and README.md to {Path(out)}; loaded again in a fresh process, it agrees")


@contextmanager
def _pointing_to(checkpoints: Path | None) -> Iterator[None]:
    """Tell whoever interrupts the command where it would go on."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoints and any(checkpoints.glob("checkpoint-*")):
            print(f"rectilinear: {checkpoints} keeps what was healed, to go on with the same command", file=sys.stderr)
        raise

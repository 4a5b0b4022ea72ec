"""``rectilinear pretrain``."""

from __future__ import annotations

import typer

from rectilinear.cli import options
from rectilinear.cli.legacy import check_out, progress, stdout
from rectilinear.cli.options import DTypeName, RegularizerName, parse_batch_size


def pretrain(
    context: typer.Context,
    text: options.Text,
    out: options.RunOut,
    preset: options.Preset = "mistral-4m",
    regularizer: options.Regularizer = RegularizerName.none,
    strength: options.Strength = 0.5,
    embedding: options.Embedding = True,
    max_steps: options.MaxSteps = None,
    epochs: options.Epochs = 1.0,
    max_tokens: options.AnyTokens = None,
    held_out: options.HeldOut = None,
    held_out_tokens: options.HeldOutTokens = 100_000,
    tokenizer: options.TrainedTokenizer = None,
    vocabulary: options.Vocabulary = None,
    seq_len: options.PresetSeqLen = None,
    accumulation: options.Accumulation = None,
    learning_rate: options.LearningRate = None,
    weight_decay: options.WeightDecay = 0.1,
    probe_every: options.ProbeEvery = None,
    save_every: options.SaveEvery = None,
    keep: options.Keep = 2,
    report_to: options.ReportTo = "none",
    resume: options.Resume = False,
    column: options.Column = "text",
    config: options.Config = None,
    split: options.Split = "train",
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.TrainDevice = "auto",
    dtype: options.TrainDType = DTypeName.auto,
    batch_size: options.BatchSize = "auto",
    revision: options.TokenizerRevision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Pretrain a decoder from random weights, with or without a penalty on neighbouring hidden states.

    For several processes: torchrun --nproc-per-node 2 -m rectilinear pretrain ..., or accelerate launch.

    Example: rectilinear pretrain --preset mistral-4m --text stories --max-steps 200 --regularizer cosine --out run
    """
    check_out(out, overwrite=True)  # what is in it, is looked at in its turn
    rows_at_once = parse_batch_size(batch_size)
    options.refuse_idle(
        context,
        (regularizer is RegularizerName.none, "without --regularizer", ["strength", "embedding"]),
        (max_steps is not None, "with --max-steps", ["epochs"]),
        (tokenizer is not None, "with --tokenizer", ["vocabulary"]),
        (tokenizer is None, "without --tokenizer", ["revision", "trust_remote_code"]),
        (held_out is None, "without --held-out", ["held_out_tokens"]),
    )

    from accelerate import PartialState

    from rectilinear.training.pretraining.pretrain import Upkeep, pretrain
    from rectilinear.training.pretraining.recipe import Recipe

    recipe = Recipe(
        text=text,
        preset=preset,
        regularizer=regularizer.value,
        strength=strength,
        embedding=embedding,
        max_steps=max_steps,
        epochs=epochs,
        max_tokens=max_tokens,
        held_out=held_out,
        held_out_tokens=held_out_tokens,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        seq_len=seq_len,
        batch_size=None if rows_at_once == "auto" else rows_at_once,
        accumulation=accumulation,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        dtype=dtype.value,
        seed=seed,
        column=column,
        config=config,
        split=split,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    try:
        with progress() as report:
            upkeep = Upkeep(probe_every, save_every, keep or None, report_to, report)
            training = pretrain(recipe, out, upkeep, resume=resume, overwrite=overwrite, device=device)
    except KeyboardInterrupt:
        if (out / "recipe.json").exists():
            raise typer.Abort(f"{out} keeps what there is of the run; to go on, add --resume") from None
        raise
    if not PartialState().is_main_process:
        return
    held = training.held_out
    speed = "" if training.tokens_per_second is None else f", {training.tokens_per_second:,.0f} tokens/s"
    stdout().print(
        f"{training.steps:,} steps, {training.data.tokens:,} tokens{speed}; loss on {held.data.tokens:,} held-out "
        f"tokens {held.told}, perplexity {held.perplexity:.2f}",
        highlight=False,
        markup=False,
    )
    probed = "" if probe_every == 0 else "dynamics.json, "
    print(f"wrote the checkpoint, training.json, {probed}and README.md to {out}")

"""Write docs/benchmarks.md from the result files beside this script, so that it cannot drift from them.

python benchmarks/page.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"


def render() -> str:
    """The page's text."""
    names = ("overhead", "official", "accuracy", "coverage", "coverage_text", "decoding", "regularizer", "yardsticks")
    overhead, official, accuracy, coverage, coverage_text, decoding, regularizer, yardsticks = map(read, names)
    encoders = read("encoders")
    quality = [read(path.stem) for path in sorted(HERE.glob("quality-*.json"))]
    return (
        "\n\n".join(
            [
                "# Benchmarks",
                "Written by `benchmarks/page.py` from the result files in `benchmarks/`. Times are from one noisy machine "
                f"({overhead['machine']['processor']}, {overhead['machine']['threads']} threads); the ratios are what to compare. "
                "No accelerator was at hand: figures on one are open.",
                "## Overhead\n\n" + about_overhead(overhead),
                "## Against the official algorithm\n\n" + about_official(official),
                "## Accuracy\n\n" + about_accuracy(accuracy),
                "## Coverage\n\n" + about_coverage(coverage),
                about_coverage_of_text(coverage_text),
                "## Quality\n\n" + "\n\n".join(about_quality(result) for result in quality),
                "## Yardsticks\n\n" + about_yardsticks(yardsticks),
                "## Decoding\n\n" + about_decoding(decoding),
                "## Penalty on hidden states\n\n" + about_regularizer(regularizer),
                "## Encoders\n\n" + about_encoders(encoders),
                "## Architectures\n\nSee [architectures.md](architectures.md).",
            ]
        )
        + "\n"
    )


def read(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def about_overhead(result: dict[str, Any]) -> str:
    """Time of a full profile over that of a plain forward pass."""
    rows = [
        [
            name,
            times(case["ratio"]),
            times(case["forward_seconds"], " s"),
            times(case["profile_seconds"], " s"),
            "/".join(case["products"]),
            f"{case['condition']:.0f}",
            str(case["sinks"]),
            str(case["ratio"]["n"]),
        ]
        for name, case in result["cases"].items()
    ]
    return (
        f"{result['question']} `{result['command']}`, {result['date']}, {result['tokens']:,} tokens, target ratio "
        f"<= {result['target_ratio']}. Median (smallest to largest) of n runs, each over the mean of the forward passes right "
        "before and after it.\n\n"
        + table(["case", "ratio", "forward", "profile", "products", "condition", "sinks", "n"], rows)
        + "\n\n"
        + result["floor"]
    )


def about_official(result: dict[str, Any]) -> str:
    """Time and memory beside the official algorithm's."""
    rows = [
        [
            f"{int(tokens):,}",
            times(case["official_over_ours_seconds"]),
            times(case["official_over_our_in_sample_seconds"]),
            times(case["official_seconds"], " s"),
            times(case["our_seconds"], " s"),
            f"{case['official_memory_mib']:,} MiB",
            f"{case['our_memory_mib']:,} MiB",
            f"{case['largest_score_difference']:.0e}",
            str(case["our_seconds"]["n"]),
        ]
        for tokens, case in result["cases"].items()
    ]
    headings = ["tokens", "times faster", "in sample only", "official", "ours"]
    headings += ["official memory", "our memory", "largest score difference", "n"]
    return (
        f"{result['question']} `{result['command']}`, {result['date']}, {result['shape'][0]} blocks of width "
        f"{result['shape'][1]}. Target: {result['target']}. The scoring part: two float32 SVDs a block of stored activations "
        'against moments and solves, which also hold out 4 folds and keep sinks apart; "in sample only" is ours without '
        "folds. The target of 10 is not reached. By operation counts it cannot be: the official side does about 20 n p^2 "
        "a block (QR, Q, Q times the small U, U'Y and XA, twice), ours 3.25 n p^2 (the triangle of Sxx, and Sxd), a factor of "
        "6 at equal speed for many tokens; the solves cost the rest where tokens are few. The score difference "
        "is the official side's float32.\n\n" + table(headings, rows)
    )


def about_accuracy(result: dict[str, Any]) -> str:
    """Distance from the float64 oracle."""
    within, beyond = result["condition_up_to_1e8"], result["condition_beyond_1e8"]
    rows = [
        [key.replace("_", " "), value, f"{error:.1e}"]
        for key, errors in within["worst_by"].items()
        for value, error in errors.items()
    ]
    return (
        f"{result['question']} `{result['command']}`, {result['date']}, width {result['width']}, target <= {result['target']:.0e} for "
        f"correlations conditioned up to 1e8. {within['n']} cases lie there, {len(within['over_target'])} of them over the "
        f"target, the worst at {within['worst']['error']:.1e}. Of {beyond['n']} cases beyond (massive tokens on top of an ill-conditioned "
        f"stream, all tokens scored together) {beyond['over_target']} are over the target, the worst at "
        f"{beyond['worst']['error']:.1e}: read `without_sinks` there.\n\n"
        + table(["over", "value", "worst error"], rows)
    )


def about_coverage(result: dict[str, Any]) -> str:
    """How often intervals of held-out scores cover."""
    cases = result["cases"]
    n = cases[0]["n"]
    short = [case for case in cases if case["interval"] < 0.93]
    rows = [
        [
            f"{case['correlation']:g}",
            f"{case['tokens_a_feature']:g}",
            str(case["folds"]),
            f"{case['expected']:.3f}",
            f"{case['deviation']:.4f}",
            f"{case['half_width']:.4f}",
            f"{case['interval']:.1%}",
            f"{case['two_standard_errors']:.1%}",
        ]
        for case in cases
    ]
    headings = ["correlation", "tokens a feature", "folds", "expected score", "deviation", "half width"]
    headings += ["interval covers", "two standard errors cover"]
    return (
        f"{result['question']} `{result['command']}`, {result['date']}, width {result['width']}, rows of {result['seq_len']} tokens; "
        f"intervals of {result['level']:.0%}, {n:,} samples of each kind, so that a share near .95 is known to ±{2 * (0.95 * 0.05 / n) ** 0.5:.1%}. "
        "Correlation: of neighbouring tokens of a row, in inputs and in noise. What is to be covered is what a map is expected to score on other "
        "text that was fitted on as many tokens as a fold's map; deviation: of held-out scores from sample to sample. "
        f"Of {len(cases)} cases {len(cases) - len(short)} are covered as often as 93 % or more. Where tokens depend on each other, their number counts for less, "
        "and an interval is worth what its row says.\n\n" + table([*headings], rows)
    )


def about_coverage_of_text(result: dict[str, Any]) -> str:
    """How often intervals cover on disjoint samples of a real text."""
    scores, losses = [], []
    for case in result["cases"]:
        samples, blocks = case["samples"], case["blocks"]
        known = 2 * (0.95 * 0.05 / samples) ** 0.5
        size = [
            f"{case['tokens']:,} ({case['tokens_a_feature']:g})",
            f"{samples:,}",
            f"{case['documents_a_sample']:.0f}",
        ]
        bias = [block["held_out"] - block["expected"] for block in blocks]
        scores.append(
            [
                *size,
                f"{min(bias):+.4f} to {max(bias):+.4f}",
                f"{statistics.fmean(block['deviation'] for block in blocks):.4f}",
                f"{statistics.fmean(block['half_width'] for block in blocks):.4f}",
                f"{min(block['interval'] for block in blocks):.1%} to {max(block['interval'] for block in blocks):.1%}",
                f"±{known:.1%}",
            ]
        )
        shares = [case[f"{what}_over_{kind}"] for what in ("loss", "difference") for kind in ("documents", "rows")]
        losses.append([*size, *(f"{share:.1%}" for share in shares), f"±{known:.1%}"])
    sizes = ["tokens (a feature)", "samples", "documents in one"]
    return (
        f"{result['question']} `{result['command']}`, {result['date']}: rows of {result['seq_len']} tokens, {result['folds']} folds, intervals of "
        f"{result['level']:.0%}. Held-out update linearity of the blocks, least and most: where a sample has few documents, neighbouring folds share "
        "one of them, so that a fold's score is that of text which its map knows in part (bias), and the interval covers less often than it says.\n\n"
        + table([*sizes, "bias", "deviation", "half width", "interval covers", "known to"], scores)
        + "\n\nThe loss, and its difference from that of the model without its third block, with documents or rows as clusters:\n\n"
        + table(
            [*sizes, "loss, documents", "loss, rows", "difference, documents", "difference, rows", "known to"], losses
        )
    )


def about_quality(result: dict[str, Any]) -> str:
    """Loss, parameters and cache after each of many replacements."""
    dense = result["dense"]
    rows = [
        [
            name,
            ",".join(map(str, case["replaced"])),
            f"{case['perplexity']:.2f}",
            f"{case['loss_increase']:.4f} ± {case['loss_increase_stderr']:.4f}",
            f"{case['parameters']:,} ({case['parameters'] / dense['parameters'] - 1:+.1%})",
            f"{case['cache_ratio']:.2f}" if "cache_ratio" in case else "-",
        ]
        for name, case in result["cases"].items()
    ]
    name = Path(result["command"].split()[-1]).name
    return (
        f"### {result['model']}\n\n"
        f"{result['question']} `{result['command']}`, {result['date']}: fitted on {result['calibration']['tokens']:,} tokens of "
        f"{result['calibration']['text']}, scored on {result['scored']['tokens']:,} tokens ({result['scored']['rows']} rows) of "
        f"{result['scored']['text']}. Dense: perplexity {dense['perplexity']:.2f}, {dense['parameters']:,} parameters. "
        "± is the standard error of the increase, paired by rows; the cache, after 160 tokens, is a share of the dense model's. "
        "*Healed*: 300 steps towards hidden states alone (`--heal-logits 0`), as the paper does. "
        "Windows keep every parameter, and the mask narrows what is seen, not what is computed. How much faster wider models run is "
        "under [decoding](#decoding): a model of this size is bound by calls, not by arithmetic.\n\n"
        f"![loss against parameters and cache](quality-{name}.png)\n\n"
        + table(["replacement", "blocks", "perplexity", "loss increase", "parameters", "cache"], rows)
    )


def about_yardsticks(result: dict[str, Any]) -> str:
    """What smaller models still can do, by every measure that needs no judge."""
    models = {"the original": result["dense"], **result["cases"]}
    own, settings = result["own endings"], result["settings"]
    summary = [
        [
            name,
            f"{found['perplexity']:.2f}",
            f"{found['parameters'] / result['dense']['parameters'] - 1:+.1%}",
            with_error(found["superglue"]),
            changed(found["superglue"]["difference"]),
            f"{found['stories']['distinct_2']:.3f}",
            f"{found['stories']['repetition']:.3f}",
            f"{found['reference']['completions']:.3f} ± {found['reference']['completions_stderr']:.3f}",
        ]
        for name, found in models.items()
    ]
    endings = f"{own['distinct_2']:.3f}", f"{own['repetition']:.3f}", f"{result['dense']['reference']['endings']:.3f}"
    summary.append(["the texts' own endings", "", "", "", "", *endings])
    probes = [
        [
            name,
            *(
                f"{with_error(probe)} @{probe['depth']}"
                + (f" ({changed(probe['difference'])})" * (probe["difference"] is not None))
                for probe in found["probes"].values()
            ),
        ]
        for name, found in models.items()
    ]
    probes.append(["commonest answer", *(f"{probe['baseline']:.3f}" for probe in result["dense"]["probes"].values())])
    asked = ", ".join(f"{task} ({probe['n']:,})" for task, probe in result["dense"]["probes"].items())
    mean = result["dense"]["superglue"]
    return (
        f"{result['question']} `{result['command']}`, {result['date']}: {result['model']}, {result['calibration']['tokens']:,} tokens of "
        f"{result['calibration']['text']} to fit, {result['scored']['tokens']:,} of {result['scored']['text']} predicted, the local columns "
        f"of SuperGLUE (at most {settings['limit']:,} documents each), {settings['count']} stories of at most "
        f"{settings['max_new_tokens']} tokens under the original's loss. Differences are from the original, on the same documents; "
        f"a constant answer has {mean['constant']:.3f} of SuperGLUE's mean.\n\n"
        + table(
            [
                "replaced",
                "perplexity",
                "parameters",
                "SuperGLUE",
                "difference",
                "distinct-2",
                "repetition",
                "reference loss",
            ],
            summary,
        )
        + f"\n\nLinear probes of {asked} questions, at the depth that cross-validation on the training part prefers (@), with "
        "standard errors; in brackets the difference from the original's, question by question, and p where it is below 0.05.\n\n"
        + table(["replaced", *result["dense"]["probes"]], probes)
        + f"\n\n{verdict(result)}"
    )


def verdict(result: dict[str, Any]) -> str:
    """How many of the differences are more than chance."""
    sides = [
        (case["superglue"]["difference"], *(probe["difference"] for probe in case["probes"].values()))
        for case in result["cases"].values()
    ]
    tests = [difference for side in sides for difference in side]
    sure = [
        difference
        for difference in tests
        if difference["p_value"] is not None and difference["p_value"] < 0.05 / len(tests)
    ]
    losses = sum(difference["value"] < 0 for difference in sure)
    above = sum(task["value"] - 2 * task["stderr"] > task["constant"] for task in result["dense"]["tasks"].values())
    return (
        f"Differences beyond chance at 0.05 / {len(tests)}, of these {len(tests)}: {len(sure)}, losses among them: {losses}. The original itself "
        f"beats a constant answer by two standard errors on {above} of {len(result['dense']['tasks'])} tasks; where it does not, a task "
        "cannot tell a smaller model from it, while perplexity and the original's loss of the stories do. A probe at depth 0 reads a bag of "
        "words, which no replacement of a block changes."
    )


def with_error(found: dict[str, Any]) -> str:
    """A score and its standard error."""
    return f"{found['value']:.3f}" + ("" if found["stderr"] is None else f" ± {found['stderr']:.3f}")


def changed(difference: dict[str, Any] | None) -> str:
    """A difference, and how sure it is where that is worth saying."""
    if difference is None:
        return ""
    p_value = difference["p_value"]
    sure = f", p {p_value:.2g}" if p_value is not None and p_value < 0.05 else ""
    return f"{difference['value']:+.3f} ± {difference['stderr']:.3f}{sure}"


def about_decoding(result: dict[str, Any]) -> str:
    """Speed and cache with half of the attentions replaced."""
    rows = [
        [
            name,
            times(case["decode_ratio"]),
            times(case["prefill_ratio"]),
            f"{case['cache_ratio']:.3f}",
            f"{case['dense_cache_bytes'] / 2**20:,.0f} MiB",
            times(case["dense_decode"], " tokens/s"),
            f"{case['parameters'] / case['dense_parameters'] - 1:+.1%}",
            str(case["decode_ratio"]["n"]),
        ]
        for name, case in result["cases"].items()
    ]
    headings = ["case", "decode", "prefill", "cache", "dense cache", "dense decode", "parameters", "n"]
    return (
        f"{result['question']} `{result['command']}`, {result['date']}, {result['shape'][0]} blocks of width {result['shape'][1]}, "
        f"filters of rank {result['rank']} with {result['taps']} taps and rates {', '.join(map(str, result['rates']))}. Ratios to the "
        "dense model in the same process, median (smallest to largest) of n rounds on an otherwise idle machine.\n\n"
        + table(headings, rows)
    )


def about_regularizer(result: dict[str, Any]) -> str:
    """Time and memory of a training step with the penalty over those without."""
    rows = [
        [
            name,
            times(case["time_ratio"]),
            times(case["plain_time_ratio"]),
            f"{case['memory_ratio']:.3f}",
            f"{case['plain_memory_ratio']:.3f}",
            times(case["step_seconds"], " s"),
            f"{case['peak_bytes'] / 2**20:,.0f} MiB",
            str(case["time_ratio"]["n"]),
        ]
        for name, case in result["cases"].items()
    ]
    headings = [
        "case",
        "time",
        "time, plain autograd",
        "memory",
        "memory, plain autograd",
        "step without",
        "memory without",
        "n",
    ]
    return (
        f"{result['question']} `{result['command']}`, {result['date']}, {result['rows']} rows of {result['seq_len']} tokens; targets: time "
        f"<= {result['target_time_ratio']}, memory <= {result['target_memory_ratio']}. Ratios to the step without a penalty in the same "
        "process, median (smallest to largest) of n; memory is what PyTorch allocates at most at once. Plain autograd is the same "
        "penalty by PyTorch's own functions.\n\n" + table(headings, rows) + "\n\n" + result["floor"]
    )


def about_encoders(result: dict[str, Any]) -> str:
    """Update linearity of an encoder and a decoder of one shape, random and trained."""
    cases = result["cases"]
    depth = result["shape"]["num_hidden_layers"]
    rows = [
        [
            str(block),
            *(
                f"{case['blocks'][block]['update_linearity']:.3f} ± {case['blocks'][block]['stderr']:.3f}"
                for case in cases.values()
            ),
            *(f"{case['blocks'][block]['linearity']:.3f}" for case in cases.values()),
        ]
        for block in range(depth)
    ]
    losses = ", ".join(f"{name} {case['loss']:.2f}" for name, case in cases.items() if "loss" in case)
    return (
        f"{result['question']} `{result['command']}`, {result['date']}: {depth} blocks of width {result['shape']['hidden_size']} "
        f"({result['parameters']:,} parameters, norms after the stream as in BERT), {result['steps']} steps of "
        f"{result['tokens_a_step']:,} tokens, the same ones; loss at the end, in nats per predicted token: {losses}. Scores held out, "
        f"on {result['measured_tokens']:,} tokens of other text; ± is the standard error over folds. One run of each.\n\n"
        + table(["block", *(f"update, {name}" for name in cases), *(f"linearity, {name}" for name in cases)], rows)
    )


def times(value: dict[str, Any], unit: str = "") -> str:
    """Median and extremes."""
    if value["n"] == 1:
        return f"{value['median']:.2f}{unit}"
    return f"{value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f}){unit}"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")

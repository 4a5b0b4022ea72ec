"""Write docs/abilities.md: what decoders can still do whose attentions are bounded, from benchmarks/abilities.

python benchmarks/abilities_page.py
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from abilities import COMMAND, DOCUMENTS, PLANS, PROMPT, PROMPTS, STRETCH, WRITTEN, Plan, mean_of
from bounded import parts_of
from page import table
from scoring import loss_of

PAGE = Path(__file__).parent.parent / "docs" / "abilities.md"

BEGIN = f"""# What bounded attention still does

The loss on rows of the length that was fitted on ([bounded.md](bounded.md)) does not say everything. `{COMMAND}`: the same models, fitted on the same text and rows, on longer rows, on another text, in tasks, in recalling what they have seen, and in writing.

- *Longer rows*, *other text*: loss above the dense model's in nats a token; ± is half of a 95 % interval over documents of the paired difference (Student's t); *late* is the second half of each row.
- *Tasks*: what share of {DOCUMENTS} documents is answered rightly by lm-evaluation-harness's own metric, and in brackets how much more or less that is than the dense model's, ± half of a 95 % interval over documents of the paired difference.
- *Recall*: {STRETCH} random tokens are seen twice, so many tokens apart, with text between; how often the most likely token is right the second time, but for its first token. Only a model that finds the first ones can know. ± is half of a 95 % interval over the stretches.
- *Writing*: {PROMPTS} texts of {PROMPT} tokens are gone on with for {WRITTEN} tokens, greedily and with a cache. *Same choices*: how often the most likely token is the dense model's, where both have read what that one wrote; *same so far*: tokens until the text that is written differs from the dense model's;
  *repeated*: share of runs of four tokens that the text has had before. ± is half of a 95 % interval over the texts.
"""


def page() -> str:
    """The text."""
    return "\n".join([BEGIN, *(about(plan) for plan in PLANS if "dense" in plan.study.cells())])


def about(plan: Plan) -> str:
    """The cells of a model that are there."""
    study, cells = plan.study, plan.study.cells()
    dense = cells["dense"]
    rows, found, written = [], [], []
    for name, cell in cells.items():
        kind, chosen = parts_of(study.ways[name])
        way = str(kind) if kind else "the dense model"
        way = f"{chosen['count']} of {study.depth}: {way}" if chosen else way
        losses = [loss_of(cell["long"], dense["long"], which) for which in ("all", "late")]
        losses += [loss_of(cell["other"][text], dense["other"][text], "all") for text in plan.other]
        rows.append([way, *([""] * len(losses) if cell is dense else losses)])
        tasks = [answered(cell["tasks"][task], None if cell is dense else dense["tasks"][task]) for task in plan.tasks]
        found.append([way, *tasks, *(mean_of(cell["recall"][str(each)]["hits"]) for each in plan.distances)])
        writing = cell["writing"]
        same = [mean_of(writing[what], form) for what, form in SAME if what in writing]
        written.append([way, *(same or ["", ""]), mean_of(writing["repeated"])])
    first = statistics.mean(value for each in dense["recall"].values() for value in each["first"])
    long = f"rows of {plan.long:,}"
    headings = ["attentions", long, f"{long}, late", *plan.other]
    asked = ["attentions", *plan.tasks, *(f"recall, {each:,} tokens on" for each in plan.distances)]
    tokens = sum(dense["long"]["sizes"]["all"])
    return (
        f"\n## {study.model}\n\nFitted on rows of {study.seq_len}; {tokens:,} tokens in longer rows, {losses_of_dense(plan, dense)}, {dense['machine']['processor']}. "
        f"Each distance has {plan.recalls} stretches; unseen, a token of them costs the dense model {first:.1f} nats.\n\n"
        f"{WHAT.get(study.model, '')}{table(headings, rows)}\n\n{table(asked, found)}\n\n{table(['attentions', 'same choices', 'same so far', 'repeated'], written)}\n"
    )


def answered(values: list[float], others: list[float] | None) -> str:
    """The mean over documents, and how much more it is than another model's."""
    mean = f"{statistics.mean(values):.3f}"
    if others is None:
        return mean
    return f"{mean} ({mean_of([one - other for one, other in zip(values, others, strict=True)], '+.3f')})"


#: What the figures of a model show, in words.
WHAT = {
    "smollm2-135m": """- *All attentions bounded*: nothing of a random string is found again that is not kept, whatever sums say of the rest; few tokens of text need that, more of them where rows are longer than those that were fitted on. A summary of far tokens makes good for more than half of what windows of the same size lose.
- *Half of them*, those where it moves predictions least, by the same windows and summaries: recall, tasks and longer rows are all but the dense model's, for a little more than half of the cache, and more parameters than the model has.

"""
}


#: What is compared with the dense model's writing, and how it is written.
SAME = (("same_choices", ".2f"), ("same_so_far", ".1f"))


def losses_of_dense(plan: Plan, dense: dict[str, Any]) -> str:
    """What the dense model loses on each text."""
    texts = {f"rows of {plan.long:,}": dense["long"], **dense["other"]}
    losses = (f"{sum(cell['sums']['all']) / sum(cell['sizes']['all']):.4f} on {text}" for text, cell in texts.items())
    return f"where the dense model loses {', '.join(losses)}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")

"""What the model cards of checkpoints have in common: metadata that the Hub reads, and how to use the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rectilinear.characters import visible
from rectilinear.models.released_code import read_text_file
from rectilinear.names import short_name

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def model_card_metadata(
    name: str,
    *,
    base_model: str | None = None,
    revision: str | None = None,
    task: str = "text-generation",
    datasets: Sequence[str] = (),
    results: Sequence[EvalResult] = (),
) -> str:
    """The head of a ``README.md``; only what is on the Hub is named in it, never a path.

    Args:
        name: of the model, for people.
        base_model, revision: of the model that it was made from; the licence is that one's, where it is known.
        task: what the model does, as the Hub calls it.
        datasets: text sources that it was trained or fitted on.
        results: see `result_of`.
    """
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        base_model=hub_id(base_model) if base_model else None,
        license=_find_license(base_model, revision) if base_model else None,
        datasets=list(filter(None, map(hub_id, datasets))) or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name,
        eval_results=list(results) or None,
        library_name="transformers",
        pipeline_tag=task,
        tags=["rectilinear"],
    )
    return f"---\n{metadata.to_yaml()}\n---"


def result_of(metric: str, value: float, source: str) -> EvalResult:
    """A number for the head of a card: a metric of text generation on a text source."""
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="text-generation",
        dataset_type=hub_id(source) or "text",
        dataset_name=bare_name(source),
        metric_type=metric,
        metric_value=round(value, 4),
    )


def usage_snippet(code: str = "") -> str:
    """Code for a card that loads the model and has it write; it runs in the checkpoint's folder.

    Args:
        code: what there is to say of code that comes with the checkpoint (`describe_code`), which then is trusted.
    """
    options = ", trust_remote_code=True" if code else ""
    return f"""{code}{code and chr(10) * 2}```python
from transformers import AutoModelForCausalLM, AutoTokenizer

place = "."  # this folder, or the Hub id that it has been uploaded to
tokenizer = AutoTokenizer.from_pretrained(place{options})
model = AutoModelForCausalLM.from_pretrained(place{options})
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=40)[0]))
```"""


def list_warnings(warnings: Sequence[str]) -> list[str]:
    """Lines for a card: what to know before trusting the model or its numbers."""
    return ["Before trusting it:", "", *(f"- {warning}" for warning in warnings), ""] if warnings else []


def write_card(folder: Path, card: str) -> None:
    """Write a card as the ``README.md`` of a checkpoint."""
    (folder / "README.md").write_text(visible(card), encoding="utf-8")


def hub_id(name: str) -> str | None:
    """The name, if it is an id on the Hub such as ``owner/name``; None for paths and what is built in."""
    on_hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not Path(name).exists()
    return name if on_hub else None


def bare_name(source: str) -> str:
    """A text source or model without the folders that it lies in: a Hub id, or the last part of a path."""
    place, comma, what = source.partition(", ")  # such as "train.txt, the last 8 rows"
    return " ".join(visible((hub_id(place) or short_name(place)) + comma + what).split())


def _find_license(model: str, revision: str | None) -> str | None:
    """The licence that the card of a model names; None where there is no card, or none to be had."""
    from huggingface_hub import ModelCard

    folder = Path(model).expanduser()
    text = read_text_file(str(folder), "README.md", revision) if folder.is_dir() or hub_id(model) else None
    try:
        data = ModelCard(text, ignore_metadata_errors=True).data if text else None
    except Exception:  # of yaml, or of what huggingface_hub expects in it
        return None
    named = getattr(data, "license", None)
    return named if isinstance(named, str) and re.fullmatch(r"[\w.+-]+", named, re.ASCII) else None

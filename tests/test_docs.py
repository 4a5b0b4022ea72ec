"""Numbers in the documentation are those of the result files."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results():
    return {
        name: json.loads((ROOT / f"benchmarks/{name}.json").read_text())
        for name in ("overhead", "official", "accuracy", "quality-stories260K")
    }


def test_the_benchmark_page_is_what_the_results_make_it():
    page = runpy.run_path(str(ROOT / "benchmarks/page.py"))["render"]()
    assert (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8") == page


def test_the_experiments_page_is_what_the_results_make_it():
    page = runpy.run_path(str(ROOT / "experiments/page.py"))["render"]()
    assert (ROOT / "docs/experiments.md").read_text(encoding="utf-8") == page


def test_the_yardsticks_say_what_the_readme_says_of_them():
    result = json.loads((ROOT / "benchmarks/yardsticks.json").read_text())

    def order(measure):
        return sorted(result["cases"], key=lambda name: measure(result["cases"][name]))

    by_perplexity = order(lambda case: case["perplexity"])
    assert order(lambda case: case["reference"]["completions"]) == by_perplexity
    assert order(lambda case: -case["superglue"]["value"]) != by_perplexity
    assert result["dense"]["superglue"]["value"] < result["dense"]["superglue"]["constant"]


def test_readme_quotes_the_results(results):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    case = results["overhead"]["cases"]
    official = results["official"]["cases"]
    accuracy = results["accuracy"]["condition_up_to_1e8"]
    quality = results["quality-stories260K"]
    replaced = (
        "affine block 0",
        "filter block 0",
        "filter inner attentions rank 24",
        "affine all attentions (NBL)",
        "filter all attentions rank 24",
        "filter all attentions rank 24, healed",
        "drop 2 by influence (ShortGPT)",
        "filter 2 by loss",
        "window 8 all attentions",
    )
    for quoted in (
        f"{quality['dense']['perplexity']:.2f}",
        f"{quality['scored']['tokens']:,}",
        *(f"{quality['cases'][name]['perplexity']:.2f}" for name in replaced),
        f"{case['well conditioned']['ratio']['median']:.2f}",
        f"{case['65,536 tokens']['ratio']['median']:.2f}",
        f"{official['16384']['official_over_ours_seconds']['median']:.1f}",
        f"{official['65536']['official_over_ours_seconds']['median']:.1f}",
        f"{official['65536']['official_memory_mib']:,} MiB",
        f"{official['65536']['our_memory_mib']:,} MiB",
        f"{accuracy['worst']['error']:.1e}",
        f"{accuracy['n']:,}",
    ):
        assert quoted in readme, quoted


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert all((page.parent / target).exists() for target in targets), targets

"""Numbers in the documentation are those of the result files."""

import json
import re
import runpy
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_what_the_page_of_models_shows_is_in_the_file_beside_it():
    found = json.loads((ROOT / "docs/inspect-gguf.json").read_text())
    page = (ROOT / "docs/models.md").read_text()
    shown = dict(re.findall(r"^    ([a-z][a-z ]{17}) (.+)$", page, re.MULTILINE))
    assert len(shown) == 11
    for name, value in shown.items():
        expected = found[name.strip().replace(" ", "_")]
        assert value == (f"{expected:,}" if isinstance(expected, int) else expected)


def test_the_benchmark_page_is_what_the_results_make_it():
    page = runpy.run_path(str(ROOT / "benchmarks/page.py"))["render"]()
    assert (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8") == page


def test_the_experiments_page_is_what_the_results_make_it():
    page = runpy.run_path(str(ROOT / "experiments/page.py"))["render"]()
    assert (ROOT / "docs/experiments.md").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("maker", "page"),
    [
        ("real_page", "real"),
        ("bounded_page", "bounded"),
        ("rivals_page", "rivals"),
        ("engines_page", "engines"),
        ("mixed_page", "mixed"),
        ("healing_page", "healing"),
        ("abilities_page", "abilities"),
        ("scale_page", "scale"),
    ],
)
def test_pages_are_what_their_results_make_them(monkeypatch, maker, page):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    made = runpy.run_path(str(ROOT / f"benchmarks/{maker}.py"))["page"]()
    assert (ROOT / f"docs/{page}.md").read_text(encoding="utf-8") == made


def test_the_tokens_that_pages_call_fitted_on_are_those_of_the_fits(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    studies = runpy.run_path(str(ROOT / "benchmarks/bounded.py"))["STUDIES"]
    made = [study for study in studies if study.cells()]
    assert len(made) >= 2
    for study in made:
        fits = [fit for cell in study.cells().values() for fit in cell.get("fit", []) if fit["tokens"]]
        assert fits
        assert {fit["tokens"] for fit in fits} == {study.tokens_fitted}


def test_the_figures_of_faults_are_those_of_the_file():
    made = runpy.run_path(str(ROOT / "benchmarks/faults.py"))
    lines = made["read"]()
    assert (ROOT / "docs/reliability.md").read_text(encoding="utf-8").endswith(made["figures"](lines))
    assert sum(line.get("kills", 0) for line in lines) >= 300
    assert sum(line.get("failed", 0) for line in lines) == 0


def test_readme_says_what_the_cell_of_a_real_decoder_does():
    profile = json.loads((ROOT / "benchmarks/real/smollm2-135m-wikitext-100000.json").read_text())
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    blocks = profile["blocks"]
    high = [block for block in blocks if block["linearity"]["in_sample"] >= 0.99]
    assert f"{profile['data']['tokens']:,} tokens of WikiText: {len(high)} of {len(blocks)} blocks have" in readme
    assert not any(block["without_sinks"]["linearity"]["in_sample"] >= 0.99 for block in blocks)
    first = [block["without_sinks"]["sinks_by"]["first_of_row"] / block["without_sinks"]["sinks"] for block in high]
    assert min(first) > 0.97
    updates = [block["without_sinks"]["update_linearity"]["in_sample"] for block in blocks]
    assert abs(statistics.median(updates) - 0.5) < 0.05


def test_readme_quotes_the_profile():
    profile = json.loads((ROOT / "docs/profile.json").read_text())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{profile['data']['tokens']:,} tokens of {profile['data']['source']}" in readme
    quoted = [line.split() for line in readme.splitlines() if re.match(r" +\d+ +0\.", line)]
    expected = []
    for block in profile["blocks"]:
        scores = [block["linearity"], block["update_linearity"]]
        output, update = ([f"{s['in_sample']:.4f}", f"{s['held_out']:.4f}", "±", f"{s['stderr']:.4f}"] for s in scores)
        expected.append(
            [str(block["index"]), *output, f"{block['identity']:.4f}", *update, f"{block['null_shifted']:.4f}"]
        )
    assert quoted == expected


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert all((page.parent / target).exists() for target in targets), targets

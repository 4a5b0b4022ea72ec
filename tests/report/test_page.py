"""The page holds what results say of themselves, and nothing that a name or a text smuggles in."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

import rectilinear
from rectilinear.errors import RequestError
from rectilinear.report.page import make_report, result_kinds
from rectilinear.results import ResultFile
from tests.report.conftest import block, linearity
from tests.report.test_dynamics_plot import make as make_dynamics
from tests.report.test_evaluation_table import make_pair
from tests.report.test_words import plan

HOSTILE = '<script>alert(1)</script>"&\u2028</title>'


class Reader(HTMLParser):
    """Scripts, and the text outside of them."""

    def __init__(self, text):
        super().__init__()
        self.text, self.scripts, self.open, self.attributes = "", [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open = tag
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open == "script":
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture
def profiles(profile, make_profile):
    """Two, of models of different depths."""
    blocks = [block(index, (0.97, 0.96, 0.01), (0.7, 0.6, 0.02), sinks=2) for index in range(5)]
    return profile, make_profile(*blocks, name=f"org/{HOSTILE}", source=HOSTILE, warnings=[HOSTILE])


def test_every_kind_of_result_is_known(monkeypatch):
    def below(kind):
        return {kind, *(each for sub in kind.__subclasses__() for each in below(sub))}

    assert set(result_kinds().values()) == below(ResultFile) - {ResultFile}


def test_names_and_texts_are_only_text(profiles):
    page = Reader(make_report(*profiles).to_html())
    data, _, _ = page.scripts  # charts, plotly, ours
    assert HOSTILE in page.text
    assert "<" not in data
    assert json.loads(data)["charts"][0]["panels"][0]["lines"][1]["label"] == HOSTILE.rpartition("/")[2]
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_what_results_say_is_on_the_page(profile, tmp_path):
    results = [profile, make_dynamics([0, 10], 2), plan(blocks=(1,)), make_pair()]
    made = make_report(*results)
    page = Reader(made.to_html())
    assert made.results == 4
    text = " ".join(page.text.split())
    for result in results:
        for words in result.words():
            assert words.partition(". ")[2] in text
        assert result.headline() in text
        for table in result.tables():
            assert all(cell in page.text for row in table.texts() for cell in row)
    assert "LlamaForCausalLM" in text
    assert "0" * 64 in text


def test_models_beside_one_another_come_first(profiles):
    first, *others = make_report(*profiles).sections
    assert first.title == "How linear blocks are, models beside one another"
    [chart] = first.charts
    assert chart.panels[0].lines[0].label == "tiny-model"
    means, differences = first.tables
    assert means.rows[0][-1].value == pytest.approx(0.22)
    assert differences.rows[0][-1] == pytest.approx(1.0)  # the same scores without sinks
    names = ["tiny-model", HOSTILE.rpartition("/")[2]]
    assert "linear maps explain so much of updates (held out): 22.0 % in " in first.headline
    assert all(f"22.0 % in {name}" in first.headline for name in names)
    assert [section.title for section in others] == [f"How linear each block is: {name}" for name in names]


def test_results_of_one_name_are_told_apart(make_profile):
    def of(score, name):
        found = block(0, (0.9, 0.8, 0.01), (0.6, 0.5, 0.02))
        found["without_sinks"]["update_linearity"] = linearity(score, score, 0.02)
        return make_profile(found, name=name)

    one, two = of(0.25, "runs/a/final"), of(0.75, "runs/b/final")
    first, *_ = make_report(one, two).sections
    means, differences = first.tables
    assert [row[0] for row in means.rows] == ["a/final", "b/final"]
    assert [row[-1].value for row in means.rows] == [0.25, 0.75]
    difference, p = differences.rows[0][2:]
    assert (difference.value, difference.stderr) == (0.5, pytest.approx(0.02 * 2**0.5))
    # Welch's t test of 0.5 with errors of 0.02 over four parts each: t = 17.68 with 6 degrees of freedom.
    assert p == "< 0.001"
    assert [row[0] for row in make_report(one, one.model_copy()).sections[0].tables[0].rows] == [
        "final on tales.txt (1)",
        "final on tales.txt (2)",
    ]


def test_titles_have_names_and_settings_have_paths(make_profile):
    of = {"name": "/tmp/real/smol", "source": "/tmp/texts/valid.txt"}
    usual = block(0, (0.9, 0.8, 0.01), (0.6, 0.5, 0.02), sinks=2)
    one, two = make_profile(usual, **of), make_profile(usual, **of | {"source": "/tmp/texts/score.txt"})
    made = make_report(one, two, make_pair())
    assert made.title == "smol; tiny"
    assert [section.title for section in made.sections] == [
        "How linear blocks are, models beside one another",
        "How linear each block is: smol on valid.txt",
        "How linear each block is: smol on score.txt",
        "How good and how fast it is: tiny",
    ]
    assert made.charts[0].title == "smol on valid.txt; smol on score.txt"
    for section in made.sections:
        said = [section.title, section.headline, *section.words, *section.warnings]
        said += [text for part in (*section.charts, *section.tables) for text in (part.title, part.caption)]
        assert not [text for text in said if "/tmp" in text or "org/" in text]
    assert made.sections[1].facts["model"]["id"] == "/tmp/real/smol"
    assert make_report(one).sections[0].title == "How linear each block is: smol"


def test_several_trainings_are_summed_up_in_a_sentence():
    falling = make_dynamics([0, 50], 2, lambda step, _: 0.6 - step / 500)
    first, *_ = make_report(falling, make_dynamics([0, 50], 2, name="runs/other")).sections
    assert first.headline == (
        "Averaged over blocks, what linear maps explain of updates went from 60.0 % to 50.0 % in mine; "
        "from 50.0 % to 50.0 % in other."
    )


def test_only_scores_of_the_same_are_compared(make_profile):
    blocks = make_profile(block(0, (0.9, 0.8, 0.01), (0.6, 0.5, 0.02)))
    attentions = blocks.model_copy(update={"target": "attention"})
    section, *_ = make_report(blocks, attentions).sections
    assert (section.tables, section.charts) == ((), ())


def test_folders_are_searched_and_files_known_by_their_schema(profile, tmp_path):
    profile.save(tmp_path / "a" / "b")
    profile.save(tmp_path / "c")
    shutil.move(tmp_path / "c" / "profile.json", tmp_path / "c" / "other.json")
    assert make_report(tmp_path).results == 1
    assert make_report(tmp_path / "a", tmp_path / "c" / "other.json").results == 2
    with pytest.raises(RequestError, match=r"expected results in .*c, got none of"):
        make_report(tmp_path / "c")
    for text in ("[]", '{"schema": "x/1"}', "{"):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(RequestError, match="expected a result of rectilinear, a JSON file with its schema, got "):
            make_report(tmp_path / "odd.json")
    assert make_report(tmp_path, tmp_path / "a", tmp_path / "a" / "b" / "profile.json").results == 1  # each once
    (tmp_path / ".page.staging-1").mkdir()
    profile.save(tmp_path / ".page.staging-1")  # of a run that is not done
    (tmp_path / "plan.json").write_text('{"name": "of something else"}')
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "profile.json").write_text("{")
    with pytest.raises(
        RequestError, match=r"expected results in .*d, got none of .*; left out, as no results: .*d/profile.json"
    ):
        make_report(tmp_path / "d")
    (tmp_path / "d" / "profile.json").unlink()
    with pytest.warns(UserWarning, match=r"left out, as no results: .*plan.json"):
        assert make_report(tmp_path).results == 1
    with pytest.raises(RequestError, match="does not exist"):
        make_report(tmp_path / "nowhere")


def test_a_command_is_of_what_can_be_named(make_profile):
    named = make_profile(block(0, (0.9, 0.8, 0.01), (0.6, 0.5, 0.02)))
    assert named.command().startswith("rectilinear measure org/tiny-model --text texts/tales.txt")
    record = {"revision": "abc", "id": "org/tiny-model"}
    pinned = named.model_copy(update={"model": named.model.model_copy(update=record)})
    assert "--revision abc" in pinned.command()
    in_memory = named.model_copy(update={"data": named.data.model_copy(update={"source": "list in memory"})})
    module = named.model_copy(update={"model": named.model.model_copy(update={"id": named.model.architecture})})
    assert (in_memory.command(), module.command()) == ("", "")


def test_evaluations_against_one_model_are_side_by_side():
    first = make_pair()
    other = first.model_copy(update={"model": first.model.model_copy(update={"id": "other", "sha256": "1" * 64})})
    section, *_ = make_report(first, other).sections
    assert section.title.startswith("Quality against cost")
    assert "other" in str(section.tables[0])


def test_the_frontier_is_of_what_nothing_beats():
    from rectilinear.charts import frontier, unbeaten

    points = [(1, 5.0), (2, 4.0), (3, 4.5), (4, 1.0), (4, 2.0)]
    line = frontier(unbeaten((x, y, "") for x, y in reversed(points)))
    assert [*zip(line.x, line.y, strict=True)] == [(1, 5.0), (2, 5.0), (2, 4.0), (4, 4.0), (4, 1.0)]


def test_files_for_papers_and_numbers(profile, tmp_path):
    names = make_report(profile).write(tmp_path)
    assert names[0] == "report.html"
    kinds = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for width in ("single", "double"):
        for kind, begins in kinds.items():
            assert (tmp_path / "figures" / f"profile-{width}.{kind}").read_bytes().startswith(begins)
    with (tmp_path / "figures" / "profile.csv").open() as file:
        rows = [*csv.DictReader(file)]
    held_out = [row for row in rows if row["line"].startswith("held out, 95") and "update" in row["panel"]]
    assert [float(row["y"]) for row in held_out] == [0.51, 0.52, -0.12]
    assert [float(row["low"]) for row in held_out] == pytest.approx([0.435, 0.37, -0.345])


def test_the_page_is_small_enough_to_send(profiles):
    assert len(make_report(*profiles).to_html().encode()) < 6e6


def test_the_command(profile, tmp_path):
    profile.save(tmp_path / "measured")
    command = [sys.executable, "-m", "rectilinear", "report", "measured"]

    def run(*more):
        return subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, env=os.environ)

    done = run("--out", "page")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"wrote report.html and 7 files in figures to .*page\n", done.stdout)
    assert (tmp_path / "page" / "report.html").stat().st_size
    assert "expected --out, the folder for the page, got none" in run().stderr


def test_importing_the_package_reads_no_drawing_library():
    code = (
        "import sys, rectilinear; print([n for n in ('plotly', 'matplotlib', 'jinja2', 'torch') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_on_the_page_makes_the_result_again(tiny_checkpoint, text_file, tmp_path):
    rows = rectilinear.Rows(max_tokens=2000, seq_len=32, bos="none")
    measurement = rectilinear.Measurement(target="block,mlp", folds=3)
    profile = rectilinear.measure(str(tiny_checkpoint), str(text_file), measurement, rows=rows, progress=False)
    line = shlex.split(profile.section().command)
    assert line[:2] == ["rectilinear", "measure"]
    assert "--folds 3" in " ".join(line)
    assert "--sink-ratio" not in line  # as by default
    ran = subprocess.run(
        [sys.executable, "-m", *line, "--out", str(tmp_path / "again")], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    again = rectilinear.Profile.load(tmp_path / "again")
    assert (again.data, again.blocks, again.parts) == (profile.data, profile.blocks, profile.parts)

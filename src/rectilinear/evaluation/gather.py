"""Results of ``rectilinear probe`` and ``rectilinear judge``, found again for the models that they are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rectilinear.errors import RequestError
from rectilinear.evaluation.criteria import Marks
from rectilinear.evaluation.judge_record import JudgeReport
from rectilinear.evaluation.judgements import JUDGEMENTS, read_judgements
from rectilinear.evaluation.probe_record import Probe
from rectilinear.names import short_name
from rectilinear.results import ModelRecord

#: What was counted and judged of a model's stories, and their marks by index, where the judge gave them.
JudgedStories = tuple[JudgeReport, Mapping[int, Marks]]


@dataclass(frozen=True)
class Gathered:
    """Results of any number of models, by file."""

    probes: Mapping[Path, Probe]
    stories: Mapping[Path, JudgedStories]

    def of(self, sha256: str | None) -> tuple[dict[str, Probe], JudgeReport | None, Mapping[int, Marks]]:
        """Probes, by task, and stories of the model with these weights; none of one whose weights have no hash."""
        files = [file for file, model in self.models.items() if sha256 and model.sha256 == sha256]
        probes = {self.probes[file].task: self.probes[file] for file in files if file in self.probes}
        report, marks = next((self.stories[file] for file in files if file in self.stories), (None, {}))
        return probes, report, marks

    @property
    def models(self) -> dict[Path, ModelRecord]:
        """Whom the files are about."""
        probed = {file: probe.model for file, probe in self.probes.items()}
        return probed | {file: report.model for file, (report, _) in self.stories.items()}

    def others(self, ran: Sequence[ModelRecord]) -> Iterator[str]:
        """Warnings of results that came to none of these models."""
        weights = {model.sha256 for model in ran}
        for file, model in self.models.items():
            if model.sha256 not in weights:
                yield (
                    f"{file} is not included: it is of {model.id} with other weights than any model here has; try the "
                    "same `dtype` and `revision` for all commands"
                )

    def namesakes(self, ours: ModelRecord) -> Iterator[str]:
        """Warnings of results of a model's weights under another name: the configuration may be another too."""
        for file, model in self.models.items():
            if model.sha256 == ours.sha256 and short_name(model.id) != short_name(ours.id):
                yield f"{file} is of {model.id}, which has the weights of {ours.id}: are they the same model?"


def gather_results(folders: Sequence[str | Path]) -> Gathered:
    """Read every ``probe.json`` and ``judge.json`` in some folders and the folders in them.

    Raises:
        RequestError: a folder that is not there or has neither, a file that is something else, stories that are not
            judged to the end, more than one probe of a task or more than one set of stories for the same weights.
    """
    probes: dict[Path, Probe] = {}
    stories: dict[Path, JudgedStories] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise RequestError(f"expected a folder of results, got {folder}")
        found = {file.resolve() for file in folder.rglob(Probe.file_name)}
        probes |= {file: Probe.load(file) for file in sorted(found)}
        judged = {file.resolve() for file in folder.rglob(JudgeReport.file_name)}
        stories |= {file: _read_stories(file) for file in sorted(judged)}
        if not (found or judged):
            raise RequestError(f"expected {Probe.file_name} or {JudgeReport.file_name} in {folder}, got none")
    _check_once({file: (f"probe of {probe.task}", probe.model.sha256) for file, probe in probes.items()})
    _check_once({file: ("set of stories", report.model.sha256) for file, (report, _) in stories.items()})
    return Gathered(probes, stories)


def _read_stories(file: Path) -> JudgedStories:
    report, answers = JudgeReport.load(file), read_judgements(file.with_name(JUDGEMENTS))
    expected = report.completions.texts if report.judged else 0
    if len(answers) != expected:
        raise RequestError(
            f"expected {expected} answers of a judge in {JUDGEMENTS} beside {file}, got {len(answers)}; was the judge "
            "stopped? try rectilinear judge --resume"
        )
    return report, {index: answer.marks for index, answer in answers.items() if answer.marks is not None}


def _check_once(found: Mapping[Path, tuple[str, str | None]]) -> None:
    """Refuse two results that say the same thing of the same weights: which of them counts?"""
    for key, times in Counter(found.values()).items():
        if times > 1 and key[1] is not None:
            where = " and ".join(str(file.parent) for file in found if found[file] == key)
            raise RequestError(f"expected one {key[0]} of a model, got several, in {where}")

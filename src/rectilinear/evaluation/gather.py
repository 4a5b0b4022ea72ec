"""Results of ``rectilinear probe`` and ``rectilinear judge``, found again for the models that they are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rectilinear.errors import RequestError
from rectilinear.evaluation.judge_client import JUDGEMENTS, read_judgements
from rectilinear.evaluation.judge_record import JudgeReport, Marks
from rectilinear.evaluation.probe_record import Probe


@dataclass(frozen=True)
class Stories:
    """Stories of a model.

    Attributes:
        report: what was counted and judged.
        marks: by index of the story, where the judge gave them.
    """

    report: JudgeReport
    marks: Mapping[int, Marks]


@dataclass(frozen=True)
class Gathered:
    """Results of any number of models."""

    probes: tuple[Probe, ...] = ()
    stories: tuple[Stories, ...] = ()

    def of(self, sha256: str) -> tuple[dict[str, Probe], Stories | None]:
        """Probes, by task, and stories of the model with these weights."""
        probes = {probe.task: probe for probe in self.probes if probe.model.sha256 == sha256}
        return probes, next((found for found in self.stories if found.report.model.sha256 == sha256), None)

    @property
    def models(self) -> dict[str, str]:
        """Names of the models, by SHA-256 of their weights."""
        models = [probe.model for probe in self.probes] + [found.report.model for found in self.stories]
        return {model.sha256: model.id for model in models}


def gather_results(folders: Sequence[str | Path]) -> Gathered:
    """Read every ``probe.json`` and ``judge.json`` in some folders and the folders in them.

    Raises:
        RequestError: a folder that is not there or has neither, a file that is something else, more than one probe of
            a task or more than one set of stories for the same weights.
    """
    probes: dict[Path, Probe] = {}
    stories: dict[Path, Stories] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise RequestError(f"expected a folder for --include, got {folder}")
        found = {file.resolve() for file in folder.rglob(Probe.file_name)}
        probes |= {file: Probe.load(file) for file in sorted(found)}
        judged = {file.resolve() for file in folder.rglob(JudgeReport.file_name)}
        stories |= {file: _read_stories(file) for file in sorted(judged)}
        if not (found or judged):
            raise RequestError(f"expected {Probe.file_name} or {JudgeReport.file_name} in --include {folder}, got none")
    _check_once({file: (f"probe of {probe.task}", probe.model.sha256) for file, probe in probes.items()})
    _check_once({file: ("set of stories", found.report.model.sha256) for file, found in stories.items()})
    return Gathered(tuple(probes.values()), tuple(stories.values()))


def _read_stories(file: Path) -> Stories:
    answers = read_judgements(file.with_name(JUDGEMENTS))
    return Stories(
        JudgeReport.load(file), {index: answer.marks for index, answer in answers.items() if answer.marks is not None}
    )


def _check_once(found: Mapping[Path, tuple[str, str]]) -> None:
    """Refuse two results that say the same thing of the same weights: which of them counts?"""
    for key, times in Counter(found.values()).items():
        if times > 1:
            where = " and ".join(str(file.parent) for file in found if found[file] == key)
            raise RequestError(f"expected one {key[0]} of a model in --include, got several, in {where}")

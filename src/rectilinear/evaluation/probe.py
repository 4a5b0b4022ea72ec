"""Linear probes (arXiv 1610.01644): what a linear map can read off the hidden states at every depth; ``probe.json``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn

from rectilinear.errors import RequestError, require
from rectilinear.evaluation.probe_record import Probe, ProbePoint
from rectilinear.evaluation.settings import Probing
from rectilinear.models.batches import check_batch_size, reporting_exhausted_memory, with_batch_size
from rectilinear.models.describe import check_context, record_environment, record_model
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.origin import Origin
from rectilinear.models.pooled import pool_states
from rectilinear.models.settings import Loading
from rectilinear.progress import Progress, reporting
from rectilinear.settings import BatchSize, takes_settings
from rectilinear.text.fingerprint import fingerprint
from rectilinear.text.tasks import Task, find_task, read_task
from rectilinear.training.classification import (
    Encoded,
    check_ids,
    describe_questions,
    encode,
    predict,
    score_predictions,
    warn_of_cuts,
)

if TYPE_CHECKING:
    from sklearn.model_selection import GridSearchCV
    from transformers import PreTrainedTokenizerBase

#: Inverse strengths of the penalty that cross-validation chooses from.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)

# Of the solver: probabilities within 1e-6 of the optimum's. At its usual 1e-4 answers would depend on where it stops.
_TOLERANCE, _ITERATIONS = 1e-8, 20_000


@takes_settings
@reporting_exhausted_memory()
def probe(
    model: str | Path | nn.Module,
    task: str,
    probing: Probing = Probing(),
    *,
    loading: Loading = Loading(),
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: BatchSize = "auto",
    progress: bool | Progress = True,
) -> Probe:
    """Fit a logistic regression to the hidden states of texts at every depth, and see what it gets right.

    Features are the states of a text pooled over its tokens, each brought to zero mean and unit deviation over the
    training part; the penalty is chosen there by cross-validation with questions of one passage kept together. The
    metrics are those of the validation part, which nothing was fitted to or chosen on. Of choices, a probe tells right
    ones from wrong ones, and the question goes to the one it is surest of.

    Args:
        model: Hub id, path, ``"storyteller"``, or a module that takes ids.
        task: ``boolq``, ``cb``, ``copa``, ``multirc``, ``rte``, ``wic``, ``wsc`` or ``reward``.
        probing: where its questions are, and how probes are fitted.
        loading, tokenizer, batch_size, progress: as for `rectilinear.measure`.

    Raises:
        RequestError: the request cannot be met: no such model or task, data that cannot be read, one answer only,
            fewer questions than folds, scikit-learn is not installed.
        JobError: activations that are not finite, memory that does not suffice.
    """
    require("sklearn", "eval")
    check_batch_size(batch_size)
    with reporting(progress) as report:
        origin = Origin(model, loading)
        kind, questions = find_task(task), read_task(task, probing.data, probing.max_examples)
        find_blocks(origin.skeleton(), probing.blocks)
        check_context(origin.config, probing.seq_len)
        own = tokenizer or origin.tokenizer
        train, validation = (encode(part, own, probing.seq_len) for part in (questions.train, questions.validation))
        check_ids(origin.config, (train, validation))
        _check_questions(kind, train, probing.folds)
        module = origin.load()
        stack = find_blocks(module, probing.blocks)
        texts = [ids for part in (train, validation) for of_question in part.ids for ids in of_question]

        def attempt(size: int) -> tuple[Tensor, int]:
            return pool_states(module, stack, texts, size, probing.pooling, report), size

        states, size = with_batch_size(attempt, batch_size, module, probing.seq_len)
        points, answers, notes = _probe_depths(kind, train, validation, states, probing.folds, report)
        return Probe(
            model=record_model(module, origin, stack, states.shape[-1]),
            task=task,
            data=describe_questions(questions.source, train, validation),
            settings=probing.model_dump(exclude={"data"})
            | {"strengths": list(STRENGTHS), "blocks": stack.path, "batch_size": size},
            environment=record_environment(module),
            points=tuple(points),
            questions=_fingerprint(train, validation),
            right=_right(validation, answers),
            warnings=(*loading_warnings(module), *warn_of_cuts(train, validation, probing.seq_len), *notes),
        )


def _probe_depths(
    task: Task, train: Encoded, validation: Encoded, states: Tensor, folds: int, progress: Progress
) -> tuple[list[ProbePoint], list[int], list[str]]:
    """What probes made of states ``[texts, depths, width]``: by depth, the answers of the best one, and warnings."""
    points, predictions, notes = [], [], []
    targets, first = _targets(task, train), sum(map(len, train.ids))
    for depth in range(states.shape[1]):
        features = states[:, depth].double().numpy()
        search = _fit(features[:first], *targets, folds)
        scores = torch.full((len(features) - first, task.answers), -torch.inf, dtype=torch.float64)
        with numpy.errstate(divide="ignore"):  # of probabilities that are 0
            scores[:, search.classes_] = torch.from_numpy(search.predict_log_proba(features[first:]))
        predictions.append(predict(task, validation, scores))
        points.append(
            ProbePoint(
                depth=depth,
                c=float(search.best_params_["logisticregression__C"]),
                cross_validated=float(search.best_score_),
                metrics=score_predictions(task, train, validation, predictions[-1]),
            )
        )
        if (search.best_estimator_[-1].n_iter_ >= _ITERATIONS).any():
            notes.append(
                f"the probe of depth {depth} did not converge in {_ITERATIONS:,} steps; try more `max_examples`"
            )
        progress("probes", depth + 1, states.shape[1])
    _, answers = max(zip(points, predictions, strict=True), key=lambda found: found[0].cross_validated)
    return points, answers, notes


def _fit(features: numpy.ndarray, labels: Sequence[int], groups: Sequence[int], folds: int) -> GridSearchCV:
    """A logistic regression on ``[texts, width]``, with the penalty that cross-validation chooses."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(tol=_TOLERANCE, max_iter=_ITERATIONS)),
        {"logisticregression__C": STRENGTHS},
        cv=StratifiedGroupKFold(folds),
        scoring="accuracy",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said later, of the penalty that is chosen
        warnings.filterwarnings("ignore", "The least populated class")
        return search.fit(features, labels, groups=groups)


def _fingerprint(train: Encoded, validation: Encoded) -> str:
    """Of what is taught and asked, and what of it belongs together, whatever the tokenizer."""
    return fingerprint(
        part
        for name, encoded in (("train", train), ("validation", validation))
        for question in encoded.questions
        for text in question.texts
        for part in (f"{name} {question.group} {question.answer} {len(text)} ", text)
    )


def _right(validation: Encoded, predictions: Sequence[int]) -> str:
    """Which answers are right; see `Probe`."""
    groups: dict[int, str] = {}
    for question, prediction in zip(validation.questions, predictions, strict=True):
        groups[question.group] = groups.get(question.group, "") + str(int(prediction == question.answer))
    return " ".join(groups.values())


def _check_questions(task: Task, train: Encoded, folds: int) -> None:
    """Refuse what cross-validation cannot be done on: every fold needs every answer on its other side."""
    labels, groups = _targets(task, train)
    where: dict[int, set[int]] = {}
    for label, group in zip(labels, groups, strict=True):
        where.setdefault(label, set()).add(group)
    if len(where) == 1:
        raise RequestError("expected questions to train on with different answers, got one answer; try other `data`")
    rarest = min(where, key=lambda label: len(where[label]))
    if len(where[rarest]) < folds:
        name = ("wrong", "right")[rarest] if task.choices else task.labels[rarest]
        raise RequestError(
            f"expected each answer for at least {folds} questions or passages to train on, got {name} for "
            f"{len(where[rarest])}; try more `max_examples` or fewer `folds`"
        )


def _targets(task: Task, encoded: Encoded) -> tuple[Sequence[int], Sequence[int]]:
    """For each text its label, right (1) or wrong (0) of choices, and the group of its question."""
    labels: list[int] = []
    groups: list[int] = []
    pairs: Any = zip(encoded.questions, encoded.ids, strict=True)
    for question, texts in pairs:
        labels += [int(place == question.answer) for place in range(len(texts))] if task.choices else [question.answer]
        groups += [question.group] * len(texts)
    return labels, groups

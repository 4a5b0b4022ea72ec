"""All that is tried with one type, in a process that may be stopped."""

import signal
import time
import warnings
from dataclasses import asdict

import torch
import transformers

from tests.matrix.checks import Answer, Subject

LIMIT = 300  # seconds for a type


def try_type(model_type):
    """The answers for a type, as JSON has them, what they are of, and how long they took."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    subject, start = Subject(model_type), time.perf_counter()

    def stop(*_):
        raise TimeoutError(f"not done in {LIMIT} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        subject.all()
    except TimeoutError as error:
        subject.answers["time"] = Answer("traceback", str(error))
    finally:
        signal.alarm(0)
    answers = {name: asdict(answer) for name, answer in subject.answers.items()}
    seconds = round(time.perf_counter() - start, 1)
    return model_type, {**subject.facts(), "seconds": seconds, "answers": answers}

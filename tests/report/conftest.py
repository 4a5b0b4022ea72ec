"""Profiles written by hand, so that what a report must show is known."""

import pytest

from rectilinear.measurement.profile import Profile


def linearity(in_sample, held_out=None, stderr=None):
    known = None not in (held_out, stderr)
    interval = {"low": held_out - 3 * stderr, "high": held_out + 3 * stderr, "level": 0.95} if known else None
    scores = {"in_sample": in_sample, "adjusted": in_sample, "held_out": held_out, "stderr": stderr}
    return {**scores, "interval": interval}


def block(index, output, update, sinks=0, identity=0.5):
    return {
        "index": index,
        "linearity": linearity(*output),
        "update_linearity": linearity(*update),
        "identity": identity,
        "update_ratio": None if identity is None else 0.25,
        "cosine": 0.75,
        "null": 0.0625,
        "without_sinks": {
            "tokens": 4096 - sinks,
            "sinks": sinks,
            "sinks_by": {
                "input": sinks,
                "output": 3,
                "update": 0,
                "first_of_row": max(0, sinks - 2),
                "ids": {"17": sinks},
            },
            "sink_energy": 0.875 if sinks else 0.0,
            "linearity": linearity(0.31, 0.21, 0.01),
            "update_linearity": linearity(0.32, 0.22, 0.02),
        },
        "solve": {
            "rank": 16,
            "condition": 3.0,
            "method": "cholesky",
            "cutoff": 0.0,
            "products": "float64",
            "error": 0.0,
        },
    }


@pytest.fixture(scope="session")
def make_profile():
    """A function that makes a profile of some blocks."""

    def make(*blocks, name="org/tiny-model", source="texts/tales.txt", warnings=()):
        digest = "0" * 64
        return Profile.model_validate(
            {
                "model": {
                    "id": name,
                    "revision": None,
                    "architecture": "LlamaForCausalLM",
                    "num_blocks": len(blocks),
                    "width": 16,
                    "parameters": 1000,
                    "sha256": digest,
                },
                "data": {"source": source, "fingerprint": digest, "tokens": 4096, "rows": 128, "seq_len": 32},
                "settings": {"folds": 4, "convention": "block", "sink_ratio": 10.0, "products": "auto"},
                "environment": {
                    "rectilinear": "0",
                    "torch": "2",
                    "transformers": "5",
                    "device": "cpu",
                    "dtype": "float32",
                },
                "blocks": blocks,
                "warnings": warnings,
            }
        )

    return make


@pytest.fixture(scope="session")
def profile(make_profile):
    """Three blocks: one as usual, one with attention sinks, one that a map does not fit at all."""
    return make_profile(
        block(0, (0.91, 0.81, 0.0125), (0.61, 0.51, 0.025), identity=0.71),
        block(1, (0.92, 0.82, 0.0250), (0.62, 0.52, 0.050), identity=0.72, sinks=7),
        block(2, (0.93, 0.83, 0.0500), (0.13, -0.12, 0.075), identity=0.73),
    )


@pytest.fixture(params=["one block", "no held-out scores", "no scores", "a negative score", "blocks left out"])
def odd_profile(request, make_profile):
    """Profiles that measuring can give, though seldom."""
    usual = ((0.9, 0.8, 0.01), (0.6, 0.5, 0.02))
    return {
        "one block": make_profile(block(0, *usual)),
        "no held-out scores": make_profile(block(0, (0.9,), (0.6,)), block(1, (0.8,), (0.7,))),
        "no scores": make_profile(block(0, (None,), (None,), identity=None), block(1, (None,), (None,), identity=None)),
        "a negative score": make_profile(block(0, (0.9, -50.0, 3.0), (0.6, -70.0, 4.0)), block(1, *usual)),
        "blocks left out": make_profile(block(0, *usual), block(5, *usual)),
    }[request.param]

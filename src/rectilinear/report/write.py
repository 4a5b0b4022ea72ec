"""Results as files: numbers and figures."""

from __future__ import annotations

from pathlib import Path

from rectilinear.evaluation.probe_record import Probe
from rectilinear.measurement.dynamics import Dynamics
from rectilinear.measurement.profile import Profile
from rectilinear.report.dynamics_plot import save_dynamics_figure
from rectilinear.report.plots import save_profile_figure
from rectilinear.report.probe_plot import save_probe_figure


def write_profile(profile: Profile, folder: str | Path) -> None:
    """Write ``profile.json``, ``profile.png`` and ``profile.svg`` into a folder."""
    profile.save(folder)
    save_profile_figure(profile, folder)


def write_dynamics(dynamics: Dynamics, folder: str | Path) -> None:
    """Write ``dynamics.json``, ``dynamics.png`` and ``dynamics.svg`` into a folder."""
    dynamics.save(folder)
    save_dynamics_figure(dynamics, folder)


def write_probe(probe: Probe, folder: str | Path) -> None:
    """Write ``probe.json``, ``probe.png`` and ``probe.svg`` into a folder."""
    probe.save(folder)
    save_probe_figure(probe, folder)

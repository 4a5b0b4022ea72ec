"""Results as files: numbers and figures."""

from __future__ import annotations

from pathlib import Path

from rectilinear.measurement.dynamics import Dynamics
from rectilinear.measurement.profile import Profile
from rectilinear.report.dynamics_plot import save_dynamics_figure
from rectilinear.report.plots import save_profile_figure


def write_profile(profile: Profile, folder: str | Path) -> None:
    """Write ``profile.json``, ``profile.png`` and ``profile.svg`` into a folder."""
    profile.save(folder)
    save_profile_figure(profile, folder)


def write_dynamics(dynamics: Dynamics, folder: str | Path) -> None:
    """Write ``dynamics.json``, ``dynamics.png`` and ``dynamics.svg`` into a folder."""
    dynamics.save(folder)
    save_dynamics_figure(dynamics, folder)

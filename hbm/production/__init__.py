"""In production: nightly priors, instant readouts, and how much to believe them."""

from hbm.production.instant import Night, instant_estimates
from hbm.production.nightly import (
    NightBusyError,
    NightError,
    fit_night,
    last_night,
    load_night,
    run_night,
    save_night,
)

__all__ = [
    "Night",
    "NightBusyError",
    "NightError",
    "fit_night",
    "instant_estimates",
    "last_night",
    "load_night",
    "run_night",
    "save_night",
]

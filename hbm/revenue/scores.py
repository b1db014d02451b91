"""Studies of revenue laid out for reading: figures with their Monte Carlo errors by platform."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from hbm.revenue.study import ratio_of_means
from hbm.studies import summarize_study
from hbm.validation import SIZE_BINS

_EVERYONE = next(iter(SIZE_BINS))


def study_scores(study: pd.DataFrame) -> pd.DataFrame:
    """Return the scores over all creators, averaged over platforms, by ``estimator``."""
    found = summarize_study(study)
    return found[found["size_bin"] == _EVERYONE].set_index("estimator")


def study_gain(study: pd.DataFrame, estimator: str, rival: str = "normal") -> tuple[float, float]:
    """Return an estimator's mean squared error over a rival's, and its Monte Carlo error."""
    wide = study[study["size_bin"] == _EVERYONE].pivot(
        index="platform", columns="estimator", values="mse"
    )
    return ratio_of_means(wide[estimator], wide[rival])


def with_error(value: float, error: float, digits: int = 2) -> str:
    """Return ``value ± error``."""
    return f"{value:.{digits}f} ± {error:.{digits}f}".replace("-", "−")


def score_table(studies: Mapping[str, pd.DataFrame], heading: str, digits: int = 3) -> pd.DataFrame:
    """Lay out studies of `hbm.revenue_study` for reading, one row a study and estimator.

    Parameters
    ----------
    studies : dict of str to DataFrame
        By what stands in the first column, whose name is `heading`.
    heading : str
    digits : int
        Decimals of dollars.
    """
    rows = []
    for title, study in studies.items():
        for name, row in study_scores(study).iterrows():
            texts = {
                column: with_error(scale * row[measure], scale * row[f"{measure}_se"], places)
                for column, measure, scale, places in (
                    ("MSE", "mse", 1, digits),
                    ("bias", "bias", 1, digits),
                    ("coverage (%)", "coverage", 100, 1),
                )
            }
            texts["to normal"] = with_error(*study_gain(study, name))
            texts["width"] = f"{row['width']:.2f}"
            rows.append({heading: title, "estimator": name} | texts)
    table = pd.DataFrame(rows)
    return table[[heading, "estimator", "MSE", "to normal", "bias", "coverage (%)", "width"]]

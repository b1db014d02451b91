"""How many users the creators of a simulated platform have, and how many of them are treated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Shares of creators, and the range of users (uniform) from which their sizes are drawn.
SIZE_MIXTURE = ((0.40, 30, 100), (0.35, 100, 500), (0.25, 500, 5000))


def draw_sizes(
    rng: np.random.Generator,
    n_creators: int,
    size_mixture: Sequence[tuple[float, int, int]] = SIZE_MIXTURE,
    treatment_share: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the users of each creator, uniform within a range that is drawn first.

    Parameters
    ----------
    rng : Generator
    n_creators : int
    size_mixture : sequence of (share, low, high)
        Shares sum to 1; sizes are integers in [low, high), at least 4 users.
    treatment_share : float
        Share of a creator's users in treatment; both arms keep at least two users.

    Returns
    -------
    n_users, n_treatment : ndarray of int, shape (creator,)

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    """
    shares, lows, highs = (np.array(column) for column in zip(*size_mixture, strict=True))
    if not np.isclose(shares.sum(), 1) or (shares < 0).any():
        raise ValueError(f"size_mixture: shares must be >= 0 and sum to 1, got {shares.tolist()}")
    if (lows < 4).any() or (highs <= lows).any():
        raise ValueError("size_mixture: every range needs 4 <= low < high")
    if not 0 < treatment_share < 1:
        raise ValueError(f"treatment_share must lie between 0 and 1, got {treatment_share}")
    component = rng.choice(len(shares), size=n_creators, p=shares)
    n_users = rng.integers(lows[component], highs[component])
    n_treatment = np.clip(np.rint(n_users * treatment_share), 2, n_users - 2).astype(int)
    return n_users, n_treatment

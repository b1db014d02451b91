"""What users do, as four families: who pays, how much (two of them), and how often.

A family holds the sufficient statistics of every creator and arm, arrays of shape ``(creator,
arm)`` with control first, and knows their log likelihood at a linear predictor of that shape. A
formula is written once and serves NumPy, and PyMC, where the statistics are variables.

`spread` is what the family needs besides: the log standard deviation of a lognormal, the
coefficient of variation of a gamma, that of the users' rates of a negative binomial.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, special

from hbm.checks import require_columns
from hbm.data import GROUPS

#: The functions that a formula needs, of NumPy; of PyTensor they are called the same.
NUMPY = SimpleNamespace(
    exp=np.exp,
    log=np.log,
    gammaln=special.gammaln,
    softplus=lambda x: np.logaddexp(0.0, x),
)


@dataclass(frozen=True)
class Family:
    """Statistics of one part of the model; `n` counts what is averaged in each arm."""

    n: Any

    #: Whether there is a `spread`.
    has_spread = True

    #: Whether the likelihood of an arm is a normal one, so that an approximation has no error.
    normal = False

    def arrays(self) -> dict[str, Any]:
        """Return the statistics by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def log_likelihood(self, eta, spread, xp=NUMPY):
        """Return the log likelihood of each arm, but for what hangs on the data alone."""
        raise NotImplementedError

    def common(self, spread, xp=NUMPY):
        """Return what the log likelihood has besides, on which no arm depends."""
        return 0.0

    def curvature(self, eta: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradient of each arm's log likelihood and minus its second derivative."""
        raise NotImplementedError

    def plug_in(self, eta: np.ndarray) -> float:
        """Estimate the spread by moments, given the linear predictor."""
        return np.nan

    def draw_spread(self, rng: np.random.Generator, spread: float, n: int) -> np.ndarray:
        """Draw the spread given its estimate; known, if the family cannot say how well."""
        return np.full(n, spread)

    def start(self) -> np.ndarray:
        """Return a first guess of the linear predictor."""
        raise NotImplementedError

    @staticmethod
    def mean(eta, spread):
        """Return the mean that a linear predictor stands for."""
        return np.exp(eta)


@dataclass(frozen=True)
class Payers(Family):
    """Who pays: of `n` users `k`, binomial, on the scale of log odds."""

    k: Any
    has_spread = False

    @classmethod
    def of(cls, arms: pd.DataFrame) -> Payers:
        return cls(_stack(arms, "n"), _stack(arms, "payers"))

    def log_likelihood(self, eta, spread=None, xp=NUMPY):
        return self.k * eta - self.n * xp.softplus(eta)

    def curvature(self, eta, spread):
        p = special.expit(eta)
        return self.k - self.n * p, self.n * p * (1 - p)

    def start(self):
        share = self.k.sum() / self.n.sum()
        return special.logit((self.k + share) / (self.n + 1))

    @staticmethod
    def mean(eta, spread):
        return special.expit(eta)


@dataclass(frozen=True)
class Lognormal(Family):
    """How much `n` payers pay: `mean_log` and `ss`, mean and squared deviations of logarithms."""

    mean_log: Any
    ss: Any
    normal = True

    @classmethod
    def of(cls, arms: pd.DataFrame) -> Lognormal:
        return cls(*(_stack(arms, name) for name in ("payers", "log_mean", "log_ss")))

    def log_likelihood(self, eta, spread, xp=NUMPY):
        squares = self.n * (self.mean_log - eta) ** 2 + self.ss
        return -self.n * xp.log(spread) - 0.5 * squares / spread**2

    def curvature(self, eta, spread):
        weight = self.n / spread**2
        return weight * (self.mean_log - eta), weight

    def plug_in(self, eta):
        return float(np.sqrt(self.ss.sum() / self._df))

    @property
    def _df(self) -> float:
        df = np.maximum(self.n - 1, 0).sum()
        if not (df > 0 and self.ss.sum() > 0):
            raise ValueError("payments do not vary within any arm: their spread cannot be had")
        return df

    def draw_spread(self, rng, spread, n):
        return np.sqrt(self.ss.sum() / rng.chisquare(self._df, n))

    def start(self):
        overall = np.average(self.mean_log, weights=self.n)
        return (self.n * self.mean_log + overall) / (self.n + 1)

    @staticmethod
    def mean(eta, spread):
        return np.exp(eta + 0.5 * np.square(spread))


@dataclass(frozen=True)
class Gamma(Family):
    """How much `n` payers pay: `total` and `squares` of payments, `log_total` of logarithms."""

    total: Any
    log_total: Any
    squares: Any

    @classmethod
    def of(cls, arms: pd.DataFrame) -> Gamma:
        n, mean, var = (_stack(arms, name) for name in ("n", "mean", "var"))
        squares = np.maximum(n - 1, 0) * np.nan_to_num(var) + n * np.square(np.nan_to_num(mean))
        payers = _stack(arms, "payers")
        return cls(payers, n * mean, payers * _stack(arms, "log_mean"), squares)

    def log_likelihood(self, eta, spread, xp=NUMPY):
        k = spread**-2.0
        constant = self.n * (k * xp.log(k) - xp.gammaln(k))
        return constant + (k - 1) * self.log_total - k * (self.n * eta + self.total * xp.exp(-eta))

    def curvature(self, eta, spread):
        ratio = self.total * np.exp(-eta)
        return (ratio - self.n) / spread**2, ratio / spread**2

    def plug_in(self, eta):
        """Pearson's estimate within arms: right whatever the tail, for it is the variance's."""
        df = np.maximum(self.n - 1, 0)
        within = self.squares - np.square(self.total) / np.maximum(self.n, 1)
        if not (df.sum() > 0 and within.sum() > 0):
            raise ValueError("payments do not vary within any arm: their spread cannot be had")
        return float(np.sqrt((within * np.exp(-2 * eta)).sum() / df.sum()))

    def start(self):
        overall = self.total.sum() / self.n.sum()
        return np.log((self.total + overall) / (self.n + 1))


@dataclass(frozen=True)
class Counts(Family):
    """How often: `total` of the counts of `n` users, negative binomial.

    Given a common spread an arm needs no more than these; what the spread itself needs is one
    table of the whole platform, `users` of each `value`.
    """

    total: Any
    value: Any
    users: Any

    @classmethod
    def of(cls, table: pd.DataFrame) -> Counts:
        cells = table.assign(total=table["count"] * table["n_users"])
        sums = cells.groupby(["creator_id", "group"], observed=True)[["n_users", "total"]].sum()
        n, total = (sums[name].unstack("group").fillna(0.0) for name in ("n_users", "total"))
        users = table.groupby("count")["n_users"].sum()
        return cls(
            n.reindex(columns=GROUPS, fill_value=0.0).to_numpy(float),
            total.reindex(columns=GROUPS, fill_value=0.0).to_numpy(float),
            users.index.to_numpy(float),
            users.to_numpy(float),
        )

    def log_likelihood(self, eta, spread, xp=NUMPY):
        size = spread**-2.0
        rest = self.n * size
        return (
            self.total * eta
            + rest * xp.log(size)
            - (self.total + rest) * xp.log(xp.exp(eta) + size)
        )

    def common(self, spread, xp=NUMPY):
        size = spread**-2.0
        return (self.users * (xp.gammaln(self.value + size) - xp.gammaln(size))).sum()

    def curvature(self, eta, spread):
        size, rate = spread**-2.0, np.exp(eta)
        both = self.total + self.n * size
        share = rate / (rate + size)
        return self.total - both * share, both * share * (1 - share)

    def plug_in(self, eta):
        """The spread of maximum likelihood, from the one table."""

        def minus(log_spread: float) -> float:
            spread = np.exp(log_spread)
            return -(self.log_likelihood(eta, spread).sum() + self.common(spread))

        found = optimize.minimize_scalar(minus, bounds=(-4.0, 4.0), method="bounded")
        return float(np.exp(found.x))

    def start(self):
        overall = self.total.sum() / self.n.sum()
        return np.log((self.total + overall) / (self.n + 1))


#: What payments can be made of.
PAYMENTS = {"lognormal": Lognormal, "gamma": Gamma}


def _stack(arms: pd.DataFrame, name: str) -> np.ndarray:
    columns = [f"{name}_{group}" for group in GROUPS]
    require_columns(arms, columns, "arms")
    return np.nan_to_num(arms[columns].to_numpy(float))

"""Priors of the hierarchical model: which families there are, and which scales are used."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy import stats

from hbm.memory import Memory

#: The standard deviation of a normal distribution in units of its median absolute deviation.
_MAD_TO_SD = 1.4826

#: A Student-t has a variance above this many degrees of freedom.
NU_MIN = 2.0


@dataclass(frozen=True)
class Prior:
    """A univariate prior; subclasses carry PyMC's class name and PyMC's parameter names."""

    #: What the subclass calls its parameters that must be greater than 0.
    positive: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not np.isfinite(value):
                raise ValueError(f"{type(self).__name__}: {name} must be finite, got {value}")
            if name in self.positive and not value > 0:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be greater than 0, got {value}"
                )

    def scipy(self) -> stats.rv_frozen:
        """Return the same distribution as a frozen SciPy distribution."""
        raise NotImplementedError

    def pymc(self, name: str | None):
        """Add the prior to the PyMC model on the stack and return its variable.

        Without a name, return the distribution alone.
        """
        import pymc as pm

        family = getattr(pm, type(self).__name__)
        return family(name, **asdict(self)) if name else family.dist(**asdict(self))


@dataclass(frozen=True)
class Normal(Prior):
    """Normal distribution with mean `mu` and standard deviation `sigma`."""

    mu: float = 0.0
    sigma: float = 1.0
    positive: ClassVar = ("sigma",)

    def scipy(self) -> stats.rv_frozen:
        return stats.norm(self.mu, self.sigma)


@dataclass(frozen=True)
class HalfNormal(Prior):
    """Normal distribution with mean 0 and standard deviation `sigma`, cut off below 0."""

    sigma: float = 1.0
    positive: ClassVar = ("sigma",)

    def scipy(self) -> stats.rv_frozen:
        return stats.halfnorm(scale=self.sigma)


@dataclass(frozen=True)
class HalfCauchy(Prior):
    """Cauchy distribution with location 0 and scale `beta`, cut off below 0."""

    beta: float = 1.0
    positive: ClassVar = ("beta",)

    def scipy(self) -> stats.rv_frozen:
        return stats.halfcauchy(scale=self.beta)


@dataclass(frozen=True)
class LogNormal(Prior):
    """Distribution whose logarithm is normal with mean `mu` and standard deviation `sigma`."""

    mu: float = 0.0
    sigma: float = 1.0
    positive: ClassVar = ("sigma",)

    def scipy(self) -> stats.rv_frozen:
        return stats.lognorm(self.sigma, scale=np.exp(self.mu))


@dataclass(frozen=True)
class TruncatedNormal(Prior):
    """Normal distribution with mode `mu` and scale `sigma`, cut off below 0."""

    mu: float = 0.0
    sigma: float = 1.0
    positive: ClassVar = ("sigma",)

    def scipy(self) -> stats.rv_frozen:
        return stats.truncnorm(-self.mu / self.sigma, np.inf, self.mu, self.sigma)

    def pymc(self, name: str | None):
        import pymc as pm

        settings = asdict(self) | {"lower": 0.0}
        return pm.TruncatedNormal(name, **settings) if name else pm.TruncatedNormal.dist(**settings)


@dataclass(frozen=True)
class Gamma(Prior):
    """Gamma distribution with shape `alpha` and rate `beta`, moved up to begin at `lower`."""

    alpha: float = 2.0
    beta: float = 0.1
    lower: float = 0.0
    positive: ClassVar = ("alpha", "beta")

    def scipy(self) -> stats.rv_frozen:
        return stats.gamma(self.alpha, loc=self.lower, scale=1 / self.beta)

    def pymc(self, name: str | None):
        import pymc as pm

        if name is None:
            return self.lower + pm.Gamma.dist(self.alpha, self.beta)
        above = pm.Gamma(f"{name}_above_lower", self.alpha, self.beta)
        return pm.Deterministic(name, self.lower + above)


@dataclass(frozen=True)
class Fixed(Prior):
    """A value that is known: `Fixed(0)` for sigma_genre means "no grouping"."""

    value: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value < 0:
            raise ValueError(f"Fixed: value must not be negative, got {self.value}")

    def scipy(self) -> stats.rv_frozen:
        raise TypeError("a fixed value has no density")

    def pymc(self, name: str):
        import pymc as pm

        return pm.Deterministic(name, pm.math.constant(float(self.value)))


@dataclass(frozen=True)
class Priors:
    """Priors of the hyperparameters, in the unit of the effects, and what past batches said.

    The defaults are weakly informative for effects of about a dollar per user.
    For data in any other unit use `Priors.weakly_informative`.

    Attributes
    ----------
    mu_global : Normal
        Platform mean of the effects.
    sigma_genre : HalfNormal, HalfCauchy, LogNormal, TruncatedNormal or Fixed
        Standard deviation of the genre means; ``Fixed(0)`` fits a model without grouping.
    sigma_creator : HalfNormal, HalfCauchy, LogNormal, TruncatedNormal or Fixed
        Standard deviation of the creators' effects within a genre.
    slope : Normal
        Change of the effect with one standard deviation of a covariate; only of a model that
        has covariates.
    sigma_spread : HalfNormal, HalfCauchy, LogNormal, TruncatedNormal or Fixed
        Standard deviation of the logarithms of the genres' own sigma_creator; only of a model
        with ``sigma_by_genre``.
    nu : Gamma or Fixed
        Degrees of freedom of the creators' effects; only of the robust model. The default is
        that of Juárez & Steel (2010), moved up by 2, since effects have a variance above 2
        only: 95% between 4.4 and 58, from heavy tails to nearly normal ones.
    memory : Memory, optional
        What was learned from past batches (`hbm.learn_priors`). Together with the priors it is a
        joint prior of sigma_creator, sigma_genre, mu_global and the means of the genres it
        names, normal in the means given the two standard deviations. A genre it does not name
        is one more draw around mu_global.
    """

    mu_global: Normal = field(default_factory=Normal)
    sigma_genre: Prior = field(default_factory=HalfNormal)
    sigma_creator: Prior = field(default_factory=HalfNormal)
    slope: Normal = field(default_factory=Normal)
    sigma_spread: Prior = field(default_factory=lambda: HalfNormal(0.5))
    nu: Prior = field(default_factory=lambda: Gamma(2.0, 0.1, lower=NU_MIN))
    memory: Memory | None = None

    def __post_init__(self) -> None:
        for name in ("mu_global", "slope"):
            if not isinstance(getattr(self, name), Normal):
                raise TypeError(f"{name} needs a Normal prior, got {getattr(self, name)!r}")
        for name in ("sigma_genre", "sigma_creator", "sigma_spread"):
            prior = getattr(self, name)
            if not isinstance(prior, Prior) or isinstance(prior, Normal):
                raise TypeError(f"{name} needs a prior on positive values, got {prior!r}")
        if isinstance(self.sigma_creator, Fixed) and self.sigma_creator.value == 0:
            raise ValueError("sigma_creator fixed at 0 is complete pooling, not a hierarchy")
        if not isinstance(self.memory, Memory | None):
            raise TypeError(f"memory needs a Memory, got {self.memory!r}")
        if not isinstance(self.nu, Gamma | Fixed):
            raise TypeError(f"nu needs a Gamma prior or a Fixed value, got {self.nu!r}")
        above = self.nu.value > NU_MIN if isinstance(self.nu, Fixed) else self.nu.lower >= NU_MIN
        if not above:
            raise ValueError(
                f"nu must lie above {NU_MIN:g}, or effects have no variance, got {self.nu!r}"
            )

    @classmethod
    def suited(cls, summaries: pd.DataFrame, given: Priors | None = None) -> Priors:
        """Return `given`, or weakly informative priors; of a single genre without its spread.

        One genre says nothing about how genres differ, unless a memory does: its mean is then
        the platform's.
        """
        priors = given or cls.weakly_informative(summaries)
        if priors.memory is None and summaries["genre_idx"].nunique() == 1:
            return replace(priors, sigma_genre=Fixed(0))
        return priors

    @classmethod
    def weakly_informative(cls, summaries: pd.DataFrame) -> Priors:
        """Return priors whose scales are those of the data, so that units do not matter.

        With m the median of ``effect_hat`` and s its standard deviation (from the median
        absolute deviation, so that a few wild estimates do not matter):
        mu_global ~ Normal(0, 5 sqrt(m² + s²)), sigma_genre and sigma_creator ~ HalfNormal(2 s),
        slope ~ Normal(0, 2 s).
        The noise of the estimates is part of s, so the priors err on the wide side.

        Parameters
        ----------
        summaries : DataFrame
            One row a creator, with ``effect_hat`` and ``se`` in any unit.

        Raises
        ------
        ValueError
            If there is no creator.
        """
        effects = summaries["effect_hat"].to_numpy(float)
        if not len(effects):
            raise ValueError("weakly informative priors need at least one creator")
        center = np.median(effects)
        spread = _MAD_TO_SD * np.median(np.abs(effects - center))
        # Ties (counts, one creator) can make the spread 0: then the noise sets the scale.
        spread = spread or float(np.median(summaries["se"]))
        return cls(
            mu_global=Normal(0.0, float(5 * np.hypot(center, spread))),
            sigma_genre=HalfNormal(float(2 * spread)),
            sigma_creator=HalfNormal(float(2 * spread)),
            slope=Normal(0.0, float(2 * spread)),
        )

    def describe(self) -> dict[str, str]:
        """Return one short text a hyperparameter, such as ``HalfNormal(sigma=1)``."""
        return {name: _describe(part) for name, part in vars(self).items() if part is not None}

    def parameters(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return family and parameters of every part, as JSON can hold them."""
        return {
            name: (type(part).__name__, asdict(part))
            for name, part in vars(self).items()
            if part is not None
        }

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any]) -> Priors:
        """Return the priors that `parameters` came from.

        Raises
        ------
        ValueError
            If there is a family that is not known.
        """
        families = {f.__name__: f for f in (*Prior.__subclasses__(), Memory)}
        unknown = [family for family, _ in parameters.values() if family not in families]
        if unknown:
            raise ValueError(
                f"priors are needed that hbm knows, not {', '.join(map(str, unknown))}"
            )
        parts = {name: families[family](**own) for name, (family, own) in parameters.items()}
        return cls(**parts)


def refuse_memory(priors: Priors, where: str) -> None:
    """Raise a ValueError if the priors hold what only the plain model can use."""
    if priors.memory is not None:
        raise ValueError(f"{where} cannot use what past batches said: priors.memory must be None")


def _describe(prior: Prior | Memory) -> str:
    if isinstance(prior, Memory):
        n_creators = ", ".join(
            f"{genre}={n:.4g}" for genre, n in zip(prior.genres, prior.n_creators, strict=True)
        )
        return f"Memory(n_creators: {n_creators})"
    values = ", ".join(f"{name}={value:.4g}" for name, value in asdict(prior).items())
    return f"{type(prior).__name__}({values})"

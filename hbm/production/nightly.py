"""The nightly job: fit, check, and put tonight's priors in the place of yesterday's.

Every night the whole table is fitted anew, which the exact engine does in a second for a million
creators. So nothing accumulates, running the job twice changes nothing, and a night that failed
is made up for by the next. Whatever happens, the folder holds one whole, checked night.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd

from hbm.checks import require_columns
from hbm.data import validate_summaries
from hbm.diagnostics import DiagnosticsError, check_diagnostics, estimates_of
from hbm.estimates import mixture
from hbm.files import written_whole
from hbm.gaussian import creator_moments, mixture_moments
from hbm.learned import FORMAT, VERSION, PriorsFileError, learn_priors, load_priors
from hbm.model import fit_hierarchical_model
from hbm.priors import Priors
from hbm.production.instant import Night, instant_estimates

#: What a night's files are called; creators that were counted lie in a file named by content.
PRIORS, COUNTED, LOCK = "priors.json", "counted-{}.parquet", ".lock"

#: A table with a smaller share of last night's creators than this, in all or in a genre, has
#: probably lost some on the way.
MIN_SHARE = 0.5

#: Genres smaller than this come and go.
MIN_GENRE = 20

#: The rehearsal: so many creators are read out as if they were new, and must agree with the fit
#: to this many standard deviations.
REHEARSED, MAX_DISAGREEMENT = 200, 1e-5


class NightError(RuntimeError):
    """Tonight's priors were not put in place; the message says why."""


class NightBusyError(NightError):
    """Another job is at work in the folder."""


def fit_night(
    summaries: pd.DataFrame,
    *,
    past: Priors | None = None,
    night: str | None = None,
) -> Night:
    """Fit a night's table with the exact engine, and check what the day will use.

    Beside the diagnostics of the fit there is a rehearsal: creators are read out by
    `hbm.instant_estimates`, and must get what the fit says of them.

    Parameters
    ----------
    summaries : DataFrame
        All experiments that count: ``creator_id, genre, genre_idx, effect_hat, se``.
    past : Priors, optional
        What older experiments have taught (`hbm.learn_priors`), whose creators must not be in
        the table; `Priors.weakly_informative` of the table when omitted.
    night : str, optional
        What the night is called; today's date when omitted.

    Returns
    -------
    Night

    Raises
    ------
    DataError
        If the table breaks a rule.
    DiagnosticsError
        If the fit cannot be trusted, or the rehearsal fails.
    """
    start = time.perf_counter()
    require_columns(summaries, ["genre", "genre_idx"], "summaries")
    priors = Priors.suited(summaries, past)
    fit = fit_hierarchical_model(summaries, engine="exact", draws=0, priors=priors)
    check_diagnostics(fit).raise_if_failed()
    columns = {name: summaries[name].to_numpy() for name in ("effect_hat", "se")}
    names = {name: summaries[name].astype(str).to_numpy() for name in ("creator_id", "genre")}
    # What the day learns from the night is today's world: nothing is discounted.
    made = Night(learn_priors(fit, discount=1), pd.DataFrame(names | columns))
    disagreement = _rehearse(made, fit, summaries)
    if not disagreement <= MAX_DISAGREEMENT:
        raise DiagnosticsError(
            f"the rehearsal failed: instant readouts differ from the fit by {disagreement:.1e} "
            f"standard deviations, not below {MAX_DISAGREEMENT}"
        )
    made.record.update(
        night=night or date.today().isoformat(),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        n_creators=len(summaries),
        genres={str(g): int(n) for g, n in summaries["genre"].value_counts(sort=False).items()},
        quadrature_error=fit.attrs["quadrature_error"],
        disagreement=disagreement,
        seconds=round(time.perf_counter() - start, 3),
    )
    return made


def _rehearse(night: Night, fit, summaries: pd.DataFrame) -> float:
    """Return the largest difference of instant readouts from the fit, in standard deviations."""
    data = estimates_of(fit)
    picked = np.linspace(0, len(data.se) - 1, min(REHEARSED, len(data.se))).astype(int)
    extremes = [f(values) for values in (data.se, data.effect_hat) for f in (np.argmin, np.argmax)]
    picked = np.unique([*picked, *extremes])
    some = data.take(picked)
    genre, sigma_creator, weights = mixture(fit)
    expected = mixture_moments(creator_moments(some, genre, sigma_creator), weights)
    found = instant_estimates(night, summaries.iloc[some.order])
    sd = np.sqrt(expected.var)
    off = np.abs(found["effect_hat"] - expected.mean) / sd, np.abs(found["se"] / sd - 1)
    return float(np.max(off))


def run_night(
    table: pd.DataFrame | Callable[[], pd.DataFrame],
    folder: str | PathLike,
    *,
    past: Priors | None = None,
    night: str | None = None,
    min_share: float = MIN_SHARE,
    say: Callable[[str], None] = lambda message: None,
) -> Night:
    """Do the nightly job: load, fit, check, and replace what lies in the folder.

    Nothing is replaced unless everything went well; then all is replaced by one renaming.

    Parameters
    ----------
    table : DataFrame or callable
        As for `fit_night`, or a function that returns it: what it raises is a bad night too.
    folder : path
        Of the priors; made if it is not there.
    past, night
        As for `fit_night`.
    min_share : float
        Refuse a table that has fewer than this share of last night's creators, by id, in all or
        still in a genre that had `MIN_GENRE` at least; 0 accepts any.
    say : callable
        Is told what is being done.

    Returns
    -------
    Night
        As it lies in the folder. Its record says: ``night, written`` (UTC), ``n_creators,
        genres`` (creators of each), ``quadrature_error``, ``disagreement`` (of the rehearsal,
        in standard deviations), ``seconds``, ``counted`` (name of the file) and its ``sha256``.

    Raises
    ------
    NightBusyError
        If another job is at work in the folder.
    NightError
        If too many creators are missing.
    DataError, DiagnosticsError, OSError
        If the table breaks a rule, the fit cannot be trusted, the files cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        last = last_night(folder, say)
        say("reading the table")
        summaries = validate_summaries(table() if callable(table) else table)
        if last is not None:
            _require_complete(summaries, last, min_share)
        say(f"fitting {len(summaries):,} creators")
        made = fit_night(summaries, past=past, night=night)
        say(f"fitted in {made.record['seconds']:.2f} s; rehearsed: instant readouts agree")
        return save_night(made, folder)


def last_night(folder: str | PathLike, say: Callable[[str], None] = lambda message: None):
    """Return the night that lies in a folder; None if there is none that can be used."""
    try:
        return load_night(folder)
    except FileNotFoundError:
        say("no night before this one")
    except PriorsFileError as error:
        say(f"the night before is damaged and will be replaced: {error}")
    return None


def _require_complete(summaries: pd.DataFrame, last: Night, min_share: float) -> None:
    """Refuse a table that has lost creators since last night, by their ids."""
    require_columns(summaries, ["genre"], "summaries")
    names = {name: summaries[name].astype(str).to_numpy() for name in ("creator_id", "genre")}
    before, now = last.counted[["creator_id", "genre"]], pd.DataFrame(names)
    counts = [("the table", before["creator_id"].isin(now["creator_id"]))]
    stays = before["genre"] == before["creator_id"].map(now.set_index("creator_id")["genre"])
    counts += [(f"genre {genre!r}", there) for genre, there in stays.groupby(before["genre"])
               if len(there) >= MIN_GENRE]  # fmt: skip
    lost = [f"{what}: {there.sum():,} of {len(there):,}" for what, there in counts
            if there.sum() < min_share * len(there)]  # fmt: skip
    if lost:
        raise NightError(
            f"fewer than {min_share:.0%} of last night's creators are there ({'; '.join(lost)}): "
            "data are probably missing; lower min_share if they are meant to be gone"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system takes back from a job that dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise NightBusyError(f"another job is at work in {folder}") from None
    try:
        yield
    finally:
        lock.release()


def save_night(night: Night, folder: str | PathLike) -> Night:
    """Put a night in the place of the one before, whole or not at all.

    The counted creators are written first, under a name made of their content; then the priors,
    read back and compared, take the place of the old ones, which is the moment that counts.

    Returns
    -------
    Night
        With the file of the counted creators in its record.

    Raises
    ------
    OSError
        If the files cannot be written; the night before stays.
    """
    folder = Path(folder)
    parquet = io.BytesIO()
    night.counted.to_parquet(parquet, index=False)
    digest = hashlib.sha256(parquet.getvalue()).hexdigest()
    counted = COUNTED.format(digest[:16])
    night = replace(night, record=night.record | {"counted": counted, "sha256": digest})
    used = {counted, *_named(folder / PRIORS)}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "priors": night.priors.parameters(),
        "night": night.record,
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    new = not (folder / counted).exists()
    with written_whole(folder / counted) as part:
        part.write_bytes(parquet.getvalue())
    try:
        with written_whole(folder / PRIORS) as part:
            part.write_text(text, "utf-8")
            if load_priors(part) != night.priors:
                raise OSError(f"{part}: what was read back is not what was written")
    except BaseException:
        if new:
            _remove(folder / counted)
        raise
    # A reader may still be on its way from the old priors to its creators: those stay a night.
    for path in folder.iterdir():
        if path.match(".*.part") or (path.match(COUNTED.format("*")) and path.name not in used):
            _remove(path)
    return night


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _named(path: Path) -> list[str]:
    """Return the file of counted creators that a file of priors names, if it does."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return [json.loads(path.read_bytes())["night"]["counted"]]
    return []


def load_night(folder: str | PathLike) -> Night:
    """Read the night that lies in a folder.

    Parameters
    ----------
    folder : path
        Of `run_night`; or a file that `hbm.save_priors` wrote, which has counted nobody.

    Raises
    ------
    FileNotFoundError
        If there is none.
    PriorsFileError
        If it is damaged.
    """
    path = Path(folder)
    path = path / PRIORS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no priors in {folder}: run the nightly job first")
    priors = load_priors(path)
    if priors.memory is None:
        raise PriorsFileError(f"{path}: nothing has been learned yet")
    record = json.loads(path.read_bytes()).get("night", {})
    if not record:
        none = {"creator_id": [], "genre": [], "effect_hat": [], "se": []}
        return Night(priors, pd.DataFrame(none).astype({"creator_id": str, "genre": str}))
    try:
        content = (path.parent / record["counted"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise ValueError("its checksum does not match")
        return Night(priors, pd.read_parquet(io.BytesIO(content)), record)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PriorsFileError(f"{path}: the creators it has counted: {error}") from error

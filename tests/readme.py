"""Makes the picture and the table of the README; `make readme` writes them."""

import re
from pathlib import Path

from hbm import (
    compare_estimators,
    comparison_table,
    complete_pooling_estimates,
    extract_hbm_estimates,
    fit_hierarchical_model,
    generate_experiment_data,
    kept,
    no_pooling_estimates,
    summarize_creators,
)
from hbm.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "chapters" / "images" / "shrinkage.png"
TABLE = re.compile(r"(?<=<!-- comparison -->\n).*?(?=<!-- /comparison -->)", re.DOTALL)


def picture_and_table():
    """Return the shrinkage figure and the comparison table of the default platform."""
    from hbm import plots

    users, truth = generate_experiment_data(seed=42)
    summaries = summarize_creators(users)
    idata = kept(fit_hierarchical_model, summaries)
    plain = no_pooling_estimates(summaries)
    pooled = kept(extract_hbm_estimates, idata, summaries)
    estimates = {
        "No pooling": plain,
        "Complete pooling": complete_pooling_estimates(summaries),
        "Partial pooling": pooled,
    }
    genre_means = idata["posterior"]["mu_genre"].mean(("chain", "draw")).to_series()
    figure = plots.plot_shrinkage(plain, pooled, genre_means)
    comparison = comparison_table(compare_estimators(estimates, truth)).reset_index()
    return figure, markdown_table(comparison, rename={"measure": ""})


def save(figure, path: Path) -> None:
    """Save the picture so that the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    figure, table = picture_and_table()
    save(figure, PICTURE)
    README.write_text(TABLE.sub(table + "\n", README.read_text("utf-8")), "utf-8")

"""Command line: `python -m offline` renders the book of the current folder without Quarto."""

import argparse
import sys

import yaml

from .book import BuildError
from .render import render


def parameter(text):
    """Read `name:value`; numbers and true or false are what they look like, the rest is text."""
    name, colon, value = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not name:value")
    read = yaml.safe_load(value)
    return name, read if isinstance(read, (bool, int, float)) else value


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m offline", description=__doc__)
    parser.add_argument("--project", default=".", help="folder that holds _quarto.yml")
    parser.add_argument("--output-dir", help="where to write, instead of the project's output-dir")
    parser.add_argument(
        "-P",
        dest="parameters",
        type=parameter,
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="set a parameter of the page",
    )
    given = parser.parse_args(arguments)
    try:
        output = render(given.project, given.output_dir, dict(given.parameters))
    except BuildError as error:
        print("", *getattr(error, "__notes__", []), f"error: {error}", sep="\n", file=sys.stderr)
        return 1
    print(f"open  python -m http.server -d {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

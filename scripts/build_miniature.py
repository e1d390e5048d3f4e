"""Trains the miniature's default recipe and writes the file that ships with the package.

    python scripts/build_miniature.py [--cache FOLDER]

Training takes about 5 processor-minutes. On another processor the small models usually come out the same and the large
ones do not: training is chaotic. The file that is committed decides what `proxytune run` prints.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from proxytune.miniature import Recipe, build
from proxytune.miniature.shipped import FILE, pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="where the trained folders are kept; default: the user's cache")
    logging.basicConfig(level=logging.INFO)
    folder = build(Recipe(), train=True, cache=parser.parse_args().cache)
    pack(folder, Recipe())
    print(f"{FILE}: {FILE.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

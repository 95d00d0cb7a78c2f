"""The long run, by command:

    python -m tests.fuzz --minutes 60 --seed 7

Prints each finding once and keeps its input in tests/fuzz/corpus/, where tests replay it for ever. Ends with
status 1 when there was one.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from fuzz.driver import fuzz, keep  # noqa: E402  (after the path)
from fuzz.surfaces import SURFACES  # noqa: E402


def main() -> int:
    """Fuzzes; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--surface", choices=list(SURFACES), action="append", help="default: all")
    options = parser.parse_args()
    began = time.monotonic()
    found, counts = fuzz(options.surface or list(SURFACES), options.seed, seconds=60 * options.minutes)
    for one in found:
        print(f"FOUND {one.surface}: {one.words!r:.600}\n  kept in {keep(one)}", file=sys.stderr)
    done = ", ".join(f"{name} {count}" for name, count in counts.items())
    took = f"{(time.monotonic() - began) / 60:.1f} min"
    print(f"{sum(counts.values())} cases in {took} ({done}): {len(found)} findings")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

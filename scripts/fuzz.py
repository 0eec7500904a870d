"""Random models, texts and calls against the slow twins, in float64, until the time is up.

    python -m scripts.fuzz --minutes 5 --seed 0

What is tried stands in tests/fuzzing.py.
"""

import sys
import time
from collections import Counter

from support.flags import COUNT, POSITIVE
from support.terminal import Parser, number, run
from tests.fuzzing import try_models


def options_from(argv):
    parser = Parser(prog="scripts.fuzz", description="Random cases against the slow twins.")
    add = parser.add_argument
    add("--minutes", type=POSITIVE, default=1.0, help="how long, if --models does not end it")
    add("--models", type=COUNT, default=1 << 31, help="how many random models and texts")
    add("--seed", type=number(int, 0, 1 << 31), default=0, help="of the first; each has the next")
    return parser.parse_args(argv)


def main(argv=None):
    options, counts = options_from(argv), Counter()
    ends, seed = time.perf_counter() + 60 * options.minutes, options.seed
    while seed < options.seed + options.models and time.perf_counter() < ends:
        try_models(seed, counts)
        seed += 1
    print(f"{seed - options.seed} models, seeds {options.seed} to {seed - 1}")
    for what in sorted({what for what, _ in counts}):
        same, excused, differ = (counts[what, how] for how in (True, "excused", False))
        print(f"{what}: {same:,} the same, {excused:,} excused, {differ:,} differ")
    if any(not how for _, how in counts):
        sys.exit(1)


if __name__ == "__main__":
    run(main, "scripts.fuzz")

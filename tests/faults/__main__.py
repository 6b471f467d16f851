"""`python -m tests.faults`: all of it; `make faults` is the same. Exit code 1 where a law was broken.

python -m tests.faults kills damage        some of it
python -m tests.faults kills --cases 40    the first 40
python -m tests.faults kills --only 17     one case of the list that a seed gives, the same each time
python -m tests.faults --seed 5            another list
"""

import sys
import time
from argparse import ArgumentParser
from collections import Counter

from tests.faults.harness import ALL, counts, results


def main() -> int:
    parser = ArgumentParser(description=__doc__, usage="python -m tests.faults [harness ...] [options]")
    parser.add_argument("harness", nargs="*", help=", ".join(ALL))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--only", type=int)
    parser.add_argument("--all", action="store_true", help="a line for each case")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if unknown := set(args.harness) - set(ALL):
        parser.error(f"{unknown.pop()}: not one of {', '.join(ALL)}")
    summary, broken = [], 0
    for harness in args.harness or ALL:
        numbers = [args.only] if args.only is not None else range(args.cases or ALL[harness])
        shares = [{harness: numbers[worker :: args.workers]} for worker in range(min(args.workers, len(numbers)))]
        words: Counter[str] = Counter()
        began = time.monotonic()
        for result in results(shares, args.seed):
            words[result.verdict.word] += 1
            broken += result.verdict.broken
            if result.verdict.broken or args.all or args.only is not None:
                print(result.text, flush=True)
            if sys.stderr.isatty():
                print(f"\r{harness}: {sum(words.values())} of {len(numbers)}", end="\r", file=sys.stderr)
        summary.append(counts(harness, words, time.monotonic() - began))
        print(summary[-1], flush=True)
    print("\n".join(["", *summary]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""How long wal-e takes to start, beside the bare interpreter and pgBackRest.

    python bench/start.py [--rounds 5] [--starts 20]

A segment costs an interpreter start and one transfer, so the start is half of the price.
"""

from __future__ import annotations

import argparse
import sys

from scratch import Cost, compare, cost_of, median_cost, print_table, ratio, scratch

INTERPRETER, WALE, PEER = "python -c pass", "wal-e version", "pgbackrest version"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=20, help="starts of each program in a round")
    options = parser.parse_args()
    with scratch() as place:

        def starts(*argv: str) -> Cost:
            def start_all() -> None:
                for _ in range(options.starts):
                    place.run(*argv)

            total = cost_of(start_all)
            return Cost(total.seconds / options.starts, total.cpu_seconds / options.starts)

        contestants = {
            INTERPRETER: lambda: starts(sys.executable, "-c", "pass"),
            WALE: lambda: starts("wal-e", "version"),
            PEER: lambda: starts("pgbackrest", "version"),
        }
        costs = compare(contestants, options.rounds)
    rows = []
    for name, one in costs.items():
        cost = median_cost(one)
        rows.append([name, f"{cost.seconds * 1000:.1f}", f"{cost.cpu_seconds * 1000:.1f}", f"{ratio(one, costs[INTERPRETER]):.2f}"])
    print_table("Start of a program", ["", "ms", "CPU ms", "time / interpreter"], rows)


if __name__ == "__main__":
    main()

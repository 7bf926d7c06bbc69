"""Run the queue against a model: ``python benchmarks/queue_model.py --broker redis --seeds 1-20``.

``--broker sqlite`` and ``postgresql`` run the outbox on that database, with relays in place of workers.

Each seed draws operations (sends, kills of workers, web process and broker, full memory, alarms, junk, a moved clock,
looks at failed mail, retries, purges), carries them out with real processes, lets the queue drain and then checks that
nothing accepted is lost or hidden, that nothing is sent twice outside the documented windows, that no thread of a
worker is held, that memory stays bounded, and that each change of state is logged once. It exits with 1 if a seed
fails, and prints its last operations and the command that repeats it.
"""

# ruff: noqa: E402 - this checkout and its test servers come first on the path

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from support.queue_model import BROKERS, run_model

from openviper.core.email.queue import close_queue


def main() -> int:
    """Run the command line."""
    given = _options()
    failed = []
    for seed in given.seeds if given.seed is None else [given.seed]:
        begin = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix=f"openviper-model-{given.broker}-{seed}-"))
        try:
            report = run_model(folder, given.broker, seed, given.operations, say=print if given.verbose else _ignore)
        except Exception:  # noqa: BLE001 - the next seed goes on
            traceback.print_exc()
            print(f"{given.broker}, seed {seed}, {given.operations} operations: FAIL; see {folder}", flush=True)
            failed.append(seed)
        else:
            print(f"{report}\n  seconds     {time.monotonic() - begin:.0f}", flush=True)
            if not report.passed:
                print(f"  logs        {folder}", flush=True)
                failed.append(seed)
            elif not given.keep:
                _remove(folder)
        finally:
            close_queue()
    print(f"failed seeds: {', '.join(map(str, failed)) or 'none'}")
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", choices=BROKERS, default="redis")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--seeds", type=_range, default=range(1, 4), metavar="A-B", help="these seeds; default: 1-3")
    parser.add_argument("--operations", type=int, default=60, help="of each seed; default: 60")
    parser.add_argument("--verbose", action="store_true", help="print each operation")
    parser.add_argument("--keep", action="store_true", help="keep the logs of seeds that pass")
    return parser.parse_args()


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _ignore(_line: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())

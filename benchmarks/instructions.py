"""Count the instructions of a send with valgrind, which no other load on the machine changes.

``python benchmarks/instructions.py [--against TREE]`` counts a send over SMTP to a local sink, and one to the memory
backend. With ``--against`` it counts another checkout as well, interleaved, and prints the ratios. Each checkout needs
its own ``.venv``. A count is the difference of a long and a short run, so start-up does not matter.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_TREE = _HERE.parent
_SHORT, _LONG = 100, 400  # messages
_ROUNDS = 2
_COUNTED = re.compile(r"Collected : (\d+)")

sys.path.insert(0, str(_HERE / "sending"))


def _instructions(tree: Path, content: Path, count: int, port: int | None) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(tree / ".venv/bin/python")]
    command += [str(_HERE / "sending" / "counted.py"), "--content", str(content), "--count", str(count)]
    command += [] if port is None else ["--port", str(port)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tree)
    found = _COUNTED.search(done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"{tree}: {done.stderr[-2000:]}")
    return int(found[1])


def _over_smtp(tree: Path, content: Path, count: int) -> int:
    sink = [sys.executable, str(_HERE / "sending" / "sink.py"), "--content", str(content), "--delay", "0"]
    sink += ["--pipelining", "--chunking"]
    with subprocess.Popen(sink, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        counted = _instructions(tree, content, count, int(server.stdout.readline()))
        output, _ = server.communicate()
    if json.loads(output)["whole"] != count:
        raise SystemExit(f"{tree}: {count} messages were sent, arrived {output}")
    return counted


def _to_memory(tree: Path, content: Path, count: int) -> int:
    return _instructions(tree, content, count, None)


def main() -> None:
    """Count and print, in thousands of instructions a message."""
    from content import write_content

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout, with a .venv of its own")
    against = parser.parse_args().against
    trees = [_TREE] if against is None else [_TREE, against.resolve()]
    with tempfile.TemporaryDirectory() as folder:
        content = write_content(Path(folder) / "content.json")
        for name, measure in (("SMTP", _over_smtp), ("memory", _to_memory)):
            counts: dict[Path, list[float]] = {tree: [] for tree in trees}
            for _ in range(_ROUNDS):
                for tree in trees:
                    difference = measure(tree, content, _LONG) - measure(tree, content, _SHORT)
                    counts[tree].append(difference / (_LONG - _SHORT) / 1000)
            medians = [statistics.median(counts[tree]) for tree in trees]
            ratio = f", {medians[0] / medians[1]:.3f} times the other's" if len(medians) > 1 else ""
            shown = ", ".join(f"{median:.1f}" for median in medians)
            print(f"{name}: {shown} thousand instructions a message{ratio}")


if __name__ == "__main__":
    main()

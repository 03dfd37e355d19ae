"""Run the benchmarks of this folder and print one table of ratios, as `make bench` does.

    python benchmarks/run_all.py [NAME...] [-- ARGUMENTS]     e.g. run_all.py crop_by_label elastic

Each `bench_<name>.py` runs in a separate process, so that it does not inherit the memory or threads of another. The
rows of its table (lines that begin with `|`, or all lines if there are none) are collected. Benchmarks that failed are
named at the end, and the exit code is then 1.
"""

import subprocess
import sys
from pathlib import Path

from timing import machine

_FOLDER = Path(__file__).parent


def main(arguments: list[str]) -> int:
    """Run the benchmarks that are named, or all."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    names, passed_on = arguments[:split], arguments[split + 1 :]
    scripts = [_FOLDER / f"bench_{name}.py" for name in names] or sorted(_FOLDER.glob("bench_*.py"))
    tables, failed = [], []
    for script in scripts:
        print(f"--- {script.name}", flush=True)
        run = subprocess.Popen([sys.executable, script, *passed_on], stdout=subprocess.PIPE, text=True)
        lines: list[str] = []
        for line in run.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
        if run.wait():
            failed.append(script.name)
        tables.append("".join([line for line in lines if line.startswith("|")] or lines))
    print(f"\n=== All benchmarks\n\nMachine: {machine()}\n")
    print("\n".join(tables))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

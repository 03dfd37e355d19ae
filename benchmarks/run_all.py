"""Run every benchmark of this folder and print one table of ratios: what `make bench` calls.

    python benchmarks/run_all.py [NAME...] [-- ARGUMENTS]     e.g. run_all.py crop_by_label elastic

Each `bench_<name>.py` runs in a process of its own, so that none inherits another's memory or threads. Its table rows
(lines that begin with `|`; all lines where there are none) are collected. A benchmark that fails is named at the end
and makes the exit code 1.
"""

import subprocess
import sys
from pathlib import Path

from timing import machine

_FOLDER = Path(__file__).parent


def main(arguments: list[str]) -> int:
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

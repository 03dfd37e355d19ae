"""Run the blocks of all pages in one separate Python process, so that torch and MONAI are imported once.

The process is separate because exported networks start native threads. It reads one JSON request per line from standard
input and writes one JSON answer per line to standard output. The answer contains everything else that is printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ANSWER = "\x1eanswer "


class PageProcess:
    """Start the process and send requests to it."""

    def __init__(self) -> None:
        tests = str(Path(__file__).parents[1])  # CONTRIBUTING imports from there
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "NO_COLOR": "1", "PYTHONPATH": tests
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            encoding="utf-8", bufsize=1,
        )  # fmt: skip

    def ask(self, **request: Any) -> str | None:
        """Run one request; return None if it succeeded, else the error and the printed text."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise RuntimeError(f"the process ended with exit code {self._process.wait()} while running {request}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def run_python(code: str, place: str, names: dict[str, Any]) -> None:
    exec(compile(code, place, "exec"), names)


def run_command(words: list[str]) -> None:
    """Run `medseg` in this process, or `python -m monai.bundle` in another one.

    Raises:
        RuntimeError: the exit code is not 0.
    """
    if words[0] == "medseg":
        from medseg.cli import main

        try:
            main(words[1:])
        except SystemExit as stop:
            if stop.code not in (0, None):
                raise RuntimeError(f"exit code {stop.code}") from None
        return
    done = subprocess.run([sys.executable, *words[1:]], check=False, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}\n{done.stderr[-3000:].decode(errors='replace')}")


def serve() -> None:
    namespaces: dict[str, dict[str, Any]] = {}
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # output of native code must not be read as an answer
    for line in sys.stdin:
        request = json.loads(line)
        printed, wrong = io.StringIO(), None
        names = namespaces.setdefault(request["page"], {"__name__": "__page__"})
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                os.chdir(Path(request["folder"]))
                if "code" in request:
                    run_python(request["code"], request["place"], names)
                else:
                    run_command(request["words"])
        except (Exception, SystemExit):
            wrong = f"{printed.getvalue()[-3000:]}\n{traceback.format_exc(limit=-3)}"
        answers.write(ANSWER + json.dumps(wrong) + "\n")


if __name__ == "__main__":
    serve()

#!/usr/bin/env python3
"""Plants each mutant of <crate>/tests/mutants.toml in a copy of the checkout, and names the test that catches it.

    scripts/mutants.py                  all of them
    scripts/mutants.py TEXT             those that have TEXT in their file, their lines or their reason
    scripts/mutants.py --crate engine   those of one crate (storage-format, engine)
    scripts/mutants.py --check          plants nothing: only whether each still fits the sources

The copy lies in a temporary directory, builds in $CARGO_TARGET_DIR/mutants, and must pass its tests as it is. A mutant
that keeps the tests from coming to an end in time is caught; one that does not compile is a mistake in the list, and so
is one whose `test` names no test. Exits with 1 where a mutant survives, or a text that it replaces is not in its file
exactly once.
"""

import argparse
import contextlib
import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"storage-format": 120, "engine": 900}  # crates, and seconds for their tests, which take some 10 and 150
MEMORY = 8 << 30  # bytes of address space: a decoder without its bounds may ask for any number
# Every mutant meets the same cases, and none the cases that another one failed.
PROPTEST = {
    "PROPTEST_RNG_SEED": os.environ.get("PROPTEST_RNG_SEED", "1"),
    "PROPTEST_DISABLE_FAILURE_PERSISTENCE": "1",
}


@dataclass
class Mutant:
    file: Path
    old: str
    new: str
    why: str
    crate: str
    test: str = ""  # part of the names of the tests to run; all where it is empty
    line: int = 0

    def mentions(self, text: str) -> bool:
        return any(text in part for part in (str(self.file), self.old, self.new, self.why))


def read_list(root: Path, crate: str) -> list[Mutant]:
    files = tomllib.loads((root / crate / "tests/mutants.toml").read_text())
    source = Path(crate) / "src"
    return [Mutant(source / name, crate=crate, **entry) for name, entries in files.items() for entry in entries]


def tests(crate: str, name: str = "") -> list[str]:
    """The command that runs a crate's tests, or those with `name` in their names, of which none is in a document."""
    command = ["cargo", "test", "--locked", "-p", f"sonde-{crate}"]
    return [*command, "--lib", "--tests", name] if name else command


def fit(root: Path, mutants: list[Mutant]) -> bool:
    """Finds the line of each mutant, and says whether all of them fit the sources, or which do not."""
    misfits = 0
    for mutant in mutants:
        text = (root / mutant.file).read_text() if (root / mutant.file).is_file() else ""
        mutant.line = text[: text.find(mutant.old)].count("\n") + 1
        if text.count(mutant.old) != 1:
            misfits += 1
            print(f"{mutant.file} has this {text.count(mutant.old)} times, not once:\n{mutant.old}")
    print(f"mutants: {len(mutants)}, of which {len(mutants) - misfits} fit the sources", flush=True)
    return misfits == 0


def copy_checkout(copy: Path) -> None:
    """Copies what git tracks or would track, as it is in the working tree, with new times: cargo goes by these."""
    command = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    for name in names.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)


def environment() -> dict[str, str]:
    command = ("sh", "-c", '. scripts/env.sh && printf %s "$CARGO_TARGET_DIR"')
    target = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return os.environ | PROPTEST | {"CARGO_TARGET_DIR": f"{target}/mutants"}


@contextlib.contextmanager
def alone(env: dict[str, str]) -> Iterator[None]:
    """Keeps other runs away: cargo takes what another copy has built there for this one's."""
    target = Path(env["CARGO_TARGET_DIR"])
    target.mkdir(parents=True, exist_ok=True)
    with open(target / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"mutants: another run builds in {target}")
        yield


def build(copy: Path, env: dict[str, str], crate: str) -> str | None:
    """What the compiler says, if it fails."""
    command = (*tests(crate), "--no-run", "--quiet")
    answer = subprocess.run(command, cwd=copy, env=env, stderr=subprocess.PIPE, text=True)
    return answer.stderr if answer.returncode != 0 else None


def first_failure(copy: Path, env: dict[str, str], crate: str, name: str = "") -> str | None:
    """The test that fails first, or how else the tests failed; `None` where they pass. They were built before."""
    limit, ran = min(LIMITS[crate], 300) if name else LIMITS[crate], 0

    def bound_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    output = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    own = {"start_new_session": True, "preexec_fn": bound_memory}
    with subprocess.Popen(tests(crate, name), cwd=copy, env=env, **output, **own) as run:

        def end() -> None:
            try:
                os.killpg(run.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

        began = time.monotonic()
        timer = threading.Timer(limit, end)
        timer.start()
        try:
            for line in run.stdout:
                if failed := re.match(r"test (\S+) .*FAILED$", line):
                    return failed[1]
                ran += line.startswith("test ") and line.endswith("... ok\n")
            if run.wait() == 0:
                return None if ran else f"no test: none has {name!r} in its name"
            late = time.monotonic() - began >= limit
            return f"no end within {limit} seconds" if late else "no test by name: their process died"
        finally:
            timer.cancel()
            end()


def plant_each(copy: Path, env: dict[str, str], mutants: list[Mutant]) -> int:
    """Counts those that were not caught."""
    wrong = 0
    for mutant in mutants:
        path = copy / mutant.file
        text = path.read_text()
        path.write_text(text.replace(mutant.old, mutant.new))
        if errors := build(copy, env, mutant.crate):
            verdict, by = "INVALID", f"it does not compile:\n{errors}"
        elif by := first_failure(copy, env, mutant.crate, mutant.test):
            verdict = "INVALID" if by.startswith("no test: ") else "caught"
        else:
            verdict, by = "SURVIVED", f"{mutant.why}\n- {mutant.old}\n+ {mutant.new}"
        path.write_text(text)
        wrong += verdict != "caught"
        print(f"{verdict:8}  {f'{mutant.file}:{mutant.line}':40}  {by}", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--crate", choices=LIMITS, action="append", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    crates = arguments.crate or list(LIMITS)
    if arguments.check:
        return 0 if fit(ROOT, [mutant for crate in crates for mutant in read_list(ROOT, crate)]) else 1

    env = environment()
    with tempfile.TemporaryDirectory(prefix="sonde-mutants-") as folder, alone(env):
        copy = Path(folder)
        copy_checkout(copy)
        mutants = [mutant for crate in crates for mutant in read_list(copy, crate)]
        if not fit(copy, mutants):
            return 1
        mutants = [mutant for mutant in mutants if mutant.mentions(arguments.text)]
        for crate in sorted({mutant.crate for mutant in mutants}):
            if failed := build(copy, env, crate) or first_failure(copy, env, crate):
                print(f"mutants: {crate} fails without any of them: {failed}", file=sys.stderr)
                return 1
        wrong = plant_each(copy, env, mutants)
    print(f"mutants: {len(mutants)}, of which {len(mutants) - wrong} were caught")
    # A run of nothing must not look like a run in which nothing survived.
    return 1 if wrong or not mutants else 0


if __name__ == "__main__":
    sys.exit(main())

"""A control group with a limit of memory, of version 1 or 2, for a server to run in."""

import contextlib
import os
from pathlib import Path

import pytest
from support import unique

V2 = Path("/sys/fs/cgroup")
V1 = V2 / "memory"


class MemoryGroup:
    """Its processes may have `limit` bytes, files in memory included."""

    def __init__(self, limit):
        name = f"sonde-{os.getpid()}-{unique('g')}"
        self._two = (V2 / "cgroup.controllers").exists()
        self.path = (V2 if self._two else V1) / name
        try:
            self.path.mkdir()
            (self.path / ("memory.max" if self._two else "memory.limit_in_bytes")).write_text(str(limit))
        except OSError as error:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            pytest.skip(f"no control group with a limit of memory: {error} (needs root and a writable /sys/fs/cgroup)")

    @property
    def killed(self):
        """Processes that the kernel ended because the limit was reached."""
        lines = (self.path / ("memory.events" if self._two else "memory.oom_control")).read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def wrap(self, binary, directory):
        """A program that moves itself into the group and becomes `binary`."""
        program = directory / "in_group"
        procs = self.path / "cgroup.procs"
        program.write_text(f'#!/bin/sh\necho $$ > "{procs}" && exec "{binary}" "$@"\n')
        program.chmod(0o755)
        return str(program)

    def close(self):
        with contextlib.suppress(OSError):
            self.path.rmdir()


@contextlib.contextmanager
def memory_group(limit):
    """A group for the time of a block."""
    group = MemoryGroup(limit)
    try:
        yield group
    finally:
        group.close()

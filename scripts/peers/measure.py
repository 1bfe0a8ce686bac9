"""What a process costs, as Linux counts it: CPU, memory, bytes, calls that sync."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
SYNCS = ("fsync", "fdatasync", "msync", "sync_file_range", "syncfs", "sync")


def cpu(pid):
    """CPU seconds of a process so far, user and system, all its threads."""
    # The second field, the name, may hold spaces; it ends with the last parenthesis.
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def written(pid):
    """Bytes that a process had written to disk so far, or `None` where we may not look."""
    try:
        return int(re.search(r"^write_bytes: (\d+)", Path(f"/proc/{pid}/io").read_text(), re.M)[1])
    except PermissionError:
        return None


def anonymous(pid):
    """Resident bytes that no file backs."""
    return int(re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)[1]) << 10


class Peak:
    """The largest `anonymous` of a process while it is open, sampled ten times a second."""

    def __init__(self, pid):
        self.pid, self.bytes, self._over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self):
        while True:
            try:
                self.bytes = max(self.bytes, anonymous(self.pid))
            except (FileNotFoundError, ProcessLookupError, TypeError):
                return  # the process is gone
            if self._over.wait(0.1):
                return

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


def wait_idle(pid, at_least=0.0, at_most=60.0, quiet=2.0):
    """Waits until a process has used less than 3 % of a core for `quiet` seconds, and `at_least` seconds are over.
    Whether that came within `at_most` seconds."""
    began = time.monotonic()
    while time.monotonic() - began < at_most:
        before = cpu(pid)
        time.sleep(quiet)
        if cpu(pid) - before < 0.03 * quiet and time.monotonic() - began >= at_least:
            return True
    return False


def size(folder, pattern="*"):
    """Bytes of the files below a folder whose names match: their lengths, not the blocks set aside for them."""
    found = 0
    for path in Path(folder).rglob(pattern):
        try:
            found += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            pass  # merged away meanwhile
    return found


class SyncCalls:
    """Counts the calls of a process that sync, by strace, while it is open; `total` is `None` where strace is missing
    or may not attach."""

    def __init__(self, pid, output):
        self.pid, self.output, self.total, self.calls = pid, Path(output), None, {}

    def __enter__(self):
        self._strace = None
        if shutil.which("strace"):
            self._strace = subprocess.Popen(
                ["strace", "-f", "-qq", "-e", f"trace={','.join(SYNCS)}", "-o", self.output, "-p", str(self.pid)],
                stderr=subprocess.DEVNULL,
            )
            self._wait_attached()
        return self

    def _wait_attached(self):
        """Until all threads are traced; a strace that ended by itself could not attach."""
        deadline = time.monotonic() + 10
        while self._strace.poll() is None and time.monotonic() < deadline:
            try:
                tasks = [task / "status" for task in Path(f"/proc/{self.pid}/task").iterdir()]
                if all(re.search(r"^TracerPid:\s+[1-9]", task.read_text(), re.M) for task in tasks):
                    return
            except FileNotFoundError:
                pass  # a thread has ended meanwhile
            time.sleep(0.05)

    def __exit__(self, *_):
        if self._strace is None:
            return
        attached = self._strace.poll() is None
        if attached:
            self._strace.send_signal(signal.SIGINT)
            self._strace.wait()
        if attached:
            # `resumed` lines finish a call that was counted when it began.
            for name in re.findall(r"^\d+\s+(\w+)\(", self.output.read_text(), re.M):
                self.calls[name] = self.calls.get(name, 0) + 1
            self.total = sum(self.calls.values())
        self.output.unlink(missing_ok=True)

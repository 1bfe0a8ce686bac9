"""Gets the programs of the comparison into the cache: pinned versions, by the ordinary clients of their registries.

What cannot be had is a `Missing` with one line that says what to do; nothing is installed into the system.
"""

import os
import shutil
import subprocess
from pathlib import Path

QUESTDB = "9.3.4"
# What Debian 12 has; another release has others, and the figures then say so.
DEBIAN = {"victoria-metrics": "1.79.5+ds1-2+b5", "influxdb": "1.6.7~rc0-1+b13"}
TSBS = "v0.0.0-20230921131859-37fced794d56"
DOWNLOAD_SECONDS = 600


class Missing(Exception):
    """A program that this run goes without, and how to get it."""


def run(command, **options):
    """Runs a program to its end; its output, or `Missing` with the last line that it said."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, **options
        )
    except subprocess.TimeoutExpired as error:
        raise Missing(f"`{' '.join(map(str, command))}` took more than {DOWNLOAD_SECONDS} s") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise Missing(f"`{' '.join(map(str, command))}` failed: {said[-1]}")
    return done.stdout


def need(program, package):
    path = shutil.which(program)
    if path is None:
        raise Missing(f"{program} is missing (apt-get install {package})")
    return path


def made(path, make):
    """`path`, made by `make` under another name first: what is there under its own name is whole."""
    path = Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            make(partial)
            partial.replace(path)
        finally:
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)
    return path


def load_generator(cache, source):
    """Our sender of requests: one file of Rust, built by rustc alone."""
    need("rustc", "rustc, or https://rustup.rs")
    stamp = source.stat().st_mtime_ns
    return made(cache / f"load-{stamp}", lambda to: run(["rustc", "--edition", "2024", "-O", "-o", to, source]))


def tsbs(cache):
    """TSBS's generator of rows. Built inside an empty module: `go install` also asks for a list of versions that not
    every proxy gives."""

    def build(to):
        need("go", "golang-go")
        module = cache / f"tsbs-module-{os.getpid()}"
        module.mkdir(parents=True)
        try:
            run(["go", "mod", "init", "rows"], cwd=module)
            run(["go", "mod", "edit", f"-require=github.com/timescale/tsbs@{TSBS}"], cwd=module)
            package = "github.com/timescale/tsbs/cmd/tsbs_generate_data"
            run(["go", "build", "-mod=mod", "-o", to.resolve(), package], cwd=module)
        finally:
            shutil.rmtree(module)

    return made(cache / f"tsbs_generate_data-{TSBS}", build)


def questdb(cache):
    """The jar of QuestDB's server, from Maven."""
    java = need("java", "openjdk-17-jre-headless")

    def fetch(to):
        # mvn names the file after the artifact, so it goes to a directory first.
        folder = to.with_name(to.name + ".dir")
        need("mvn", "maven")
        try:
            run(
                ["mvn", "-q", "-B", "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"]
                + [f"-Dartifact=org.questdb:questdb:{QUESTDB}", f"-DoutputDirectory={folder}"]
            )
            (folder / f"questdb-{QUESTDB}.jar").replace(to)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return java, made(cache / f"questdb-{QUESTDB}.jar", fetch)


def debian(cache, package, program):
    """A program of a Debian package, unpacked into the cache and not installed."""
    version = DEBIAN[package]

    def unpack(to):
        if shutil.which("apt-get") is None:
            raise Missing(f"{package} {version} needs Debian 12: apt-get is missing")
        to.mkdir()
        # As root, apt downloads as a user of its own, who must not need to enter the cache.
        plain = ["-o", "APT::Sandbox::User=root"]
        try:
            run(["apt-get", *plain, "download", f"{package}={version}"], cwd=to)
        except Missing as error:
            raise Missing(f"{package} {version}: run `apt-get update`, on Debian 12 ({error})") from error
        (archive,) = to.glob("*.deb")
        run(["dpkg-deb", "-x", archive, to])
        archive.unlink()

    folder = made(cache / f"{package}-{version.replace('~', '-')}", unpack)
    return folder / "usr/bin" / program


def rows(cache, generator, hours, hosts):
    """The lines of TSBS's cpu-only set, in the order of time."""
    whole, part = divmod(round(hours * 360), 360)  # steps of 10 seconds
    end = f"2024-01-01T{whole:02}:{part // 6:02}:{part % 6 * 10:02}Z"

    def generate(to):
        with open(to, "wb") as output:
            done = subprocess.run(
                [generator, "--use-case=cpu-only", "--seed=7", f"--scale={hosts}", "--log-interval=10s"]
                + ["--timestamp-start=2024-01-01T00:00:00Z", f"--timestamp-end={end}", "--format=influx"],
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=DOWNLOAD_SECONDS,
            )
        if done.returncode != 0:
            raise Missing(f"tsbs_generate_data failed: {done.stderr.decode().strip()[-200:]}")

    return made(cache / f"cpu-{hosts}-{hours:g}h.lp", generate)

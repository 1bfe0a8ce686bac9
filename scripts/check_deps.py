"""Checks the resolved dependencies against deny.toml and Cargo.toml; no package is compiled.

- every licence expression can be met with the licences that deny.toml allows
- one version of everything that passes between our layers (ONE_VERSION)
- only workspace members and the public crate registry as sources
- no dependency declares a newer Rust than our rust-version
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Two versions of one of these are two types of the same name, one of which some layer does not take.
ONE_VERSION = ("arrow", "datafusion", "object_store", "parquet", "tonic")


def allows(expression, allowed):
    """Can an SPDX expression be met with the allowed licences? `/` is the old way to write OR.

    >>> allowed = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"}
    >>> [allows(e, allowed) for e in ("MIT", "GPL-3.0", "MIT/GPL-3.0", "GPL-3.0 OR MIT", "MIT AND GPL-3.0")]
    [True, False, True, True, False]
    >>> allows("(MIT OR GPL-3.0) AND Apache-2.0", allowed), allows("GPL-3.0 OR MIT AND Zlib", allowed)
    (True, False)
    >>> allows("Apache-2.0 WITH LLVM-exception", allowed), allows("MIT WITH LLVM-exception", allowed)
    (True, False)
    >>> allows("MIT Apache-2.0", allowed)
    Traceback (most recent call last):
    ValueError: cannot read the licence expression 'MIT Apache-2.0'
    """
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))
    bad = ValueError(f"cannot read the licence expression {expression!r}")

    def choice():
        met = every()
        while tokens[:1] == ["OR"]:
            tokens.pop(0)
            met = every() or met
        return met

    def every():
        met = licence()
        while tokens[:1] == ["AND"]:
            tokens.pop(0)
            met = licence() and met
        return met

    def licence():
        if not tokens or tokens[0] in (")", "OR", "AND", "WITH"):
            raise bad
        name = tokens.pop(0)
        if name == "(":
            met = choice()
            if tokens[:1] != [")"]:
                raise bad
            tokens.pop(0)
            return met
        if tokens[:1] == ["WITH"] and len(tokens) > 1:
            name = f"{name} WITH {tokens[1]}"
            del tokens[:2]
        return name in allowed

    met = choice()
    if tokens:
        raise bad
    return met


def string_list(toml, key):
    """The strings of `key = [...]`. Python before 3.11 has no TOML reader, and this file is ours.

    >>> string_list('a = ["x"]\\nkey = [\\n  "one", # not "this"\\n  "two",\\n]\\n', "key")
    ['one', 'two']
    """
    body = re.search(rf"^{key} = \[(.*?)\]", re.sub(r"#.*", "", toml), re.S | re.M)
    return re.findall(r'"([^"]*)"', body.group(1))


def version(text):
    """
    >>> version("1.94") < version("1.94.1") < version("1.100")
    True
    """
    numbers = [int(part) for part in text.split(".")]
    return numbers + [0] * (3 - len(numbers))


def problems(metadata, allowed):
    members = set(metadata["workspace_members"])
    oldest = next(p["rust_version"] for p in metadata["packages"] if p["id"] in members)
    versions = defaultdict(list)
    for package in metadata["packages"]:
        name = f"{package['name']} {package['version']}"
        versions[package["name"]].append(package["version"])
        if not package["license"]:
            yield f"{name} states no licence"
        elif not allows(package["license"], allowed):
            yield f"{name} is licensed under {package['license']}, which deny.toml does not allow"
        if package["rust_version"] and version(package["rust_version"]) > version(oldest):
            yield f"{name} needs Rust {package['rust_version']}, we promise {oldest}"
        if package["id"] not in members and not (package["source"] or "").endswith("/crates.io-index"):
            yield f"{name} comes from {package['source'] or 'a path outside of the workspace'}"
    for name, found in sorted(versions.items()):
        if name.startswith(ONE_VERSION) and len(found) > 1:
            found = ", ".join(sorted(found))
            yield f"{name} is there more than once ({found}): `cargo tree -i {name}@VERSION` says why"


def main():
    deny = (ROOT / "deny.toml").read_text()
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
    for target in string_list(deny, "targets"):
        command += ["--filter-platform", target]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE)
    if answer.returncode != 0:
        return 1  # cargo has said why
    metadata = json.loads(answer.stdout)
    found = list(problems(metadata, set(string_list(deny, "allow"))))
    for problem in found:
        print(f"dependencies: {problem}")
    if not found:
        print(f"dependencies: {len(metadata['packages'])} packages, all within the rules")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

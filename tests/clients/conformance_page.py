"""docs/mqtt-conformance.md and the marks of the tests: `python tests/clients/conformance_page.py` writes the names of the
tests, and the counts, into the page; test_conformance_page.py fails when they are not those.

A statement's words, whom it binds and why it does not apply are written by hand in the page.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

CLIENTS = Path(__file__).parent
ROOT = CLIENTS.parent.parent
PAGE = ROOT / "docs" / "mqtt-conformance.md"
VERSIONS = {"MQTT 5.0": "v5", "MQTT 3.1.1": "v311"}
NONE, NOT_OURS = "none yet", "does not apply: "
ROW = re.compile(r"\| (\d+\.\d+\.\d+-\d+) \| (server|client|both) \| (.*) \| (.*) \|$")
COUNT = re.compile(r"^- \*\*(MQTT [\d.]+)\*\*: .*$")


def marks():
    """version -> statement -> the tests that cover it, `file::function`, in order."""
    found = {version: defaultdict(list) for version in VERSIONS.values()}
    for path in sorted(CLIENTS.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "covers":
                    for keyword in call.keywords:
                        for statement in ast.literal_eval(keyword.value).split():
                            name = f"{path.name}::{node.name}"
                            if name not in found[keyword.arg][statement]:
                                found[keyword.arg][statement].append(name)
    return found


def rust_test_exists(name):
    path, _, function = name.partition("::")
    source = ROOT / path
    return source.is_file() and re.search(rf"\bfn {re.escape(function)}\b", source.read_text()) is not None


def made(page):
    """The page with the tests of the marks in it, its statements by version, and what is wrong with it."""
    found, lines, version, wrong = marks(), [], None, []
    listed = {version: {} for version in VERSIONS.values()}
    for line in page.splitlines():
        if line.startswith("## "):
            version = VERSIONS.get(line[3:].strip())
        if (row := ROW.match(line)) and version:
            statement, binds, words, cell = row.groups()
            if statement in listed[version]:
                wrong.append(f"{version} {statement} stands there twice")
            others = [t for t in cell.replace("`", "").split("<br>") if not t.startswith("test_") and t not in (NONE, "")]
            for other in others:
                if not other.startswith(NOT_OURS) and not rust_test_exists(other):
                    wrong.append(f"{version} {statement}: there is no test {other}")
            tests = found[version].get(statement, [])
            names = [t if t.startswith(NOT_OURS) else f"`{t}`" for t in others + tests]
            applies = binds != "client" and not any(t.startswith(NOT_OURS) for t in others)
            listed[version][statement] = (applies, bool(names))
            line = f"| {statement} | {binds} | {words} | {'<br>'.join(names) or ('' if binds == 'client' else NONE)} |"
        lines.append(line)
    for version, statements in listed.items():
        wrong += [f"{tests} mark {version} {s}, which the page does not have" for s, tests in found[version].items() if s not in statements]
    for number, line in enumerate(lines):
        if counted := COUNT.match(line):
            covered, applicable, total = count(listed[VERSIONS[counted[1]]])
            share = 100 * covered / applicable
            lines[number] = (
                f"- **{counted[1]}**: {total} statements, {applicable} of them apply to a server, tests cover {covered} of these "
                f"({share:.1f} %)."
            )
    return "\n".join(lines) + "\n", listed, wrong


def count(statements):
    applicable = [covered for applies, covered in statements.values() if applies]
    return sum(applicable), len(applicable), len(statements)


if __name__ == "__main__":
    text, statements, faults = made(PAGE.read_text())
    PAGE.write_text(text)
    print(*faults, *(f"{v}: %d of %d covered, %d in all" % count(s) for v, s in statements.items()), sep="\n")
    print(*(f"{v} {n} is covered by nothing" for v, s in statements.items() for n, (ours, tested) in s.items() if ours and not tested), sep="\n")

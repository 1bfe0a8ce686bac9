"""Makes Markdown of a run's figures, and puts it between the marks of the document."""

BEGIN, END = "<!-- peers: begin, written by `make bench-peers` -->", "<!-- peers: end -->"
SMALL = ("1/1", "1/4", "1/64", "100/4")
RATES = ("rows_per_s", "rows_per_cpu")
QUESTIONS = ("latest", "window 1 h", "window all", "sum")


def flags(arguments):
    """What was asked for, as `make` takes it, without the paths of one machine.

    >>> flags(["--cache", "c", "--sonde=s", "--quick", "--recordings", "r", "--only", "sonde,duckdb", "--write"])
    ['PEERS_ARGS="--quick --recordings DIR --only sonde,duckdb"']
    >>> flags(["--cache", "c", "--sonde", "s"])
    []
    """
    kept, skip = [], False
    for argument in arguments:
        name = argument.split("=")[0]
        if skip or name in ("--cache", "--sonde", "--write"):
            skip = not skip and name != "--write" and "=" not in argument
        elif name == "--recordings":
            kept.append("--recordings DIR")
            skip = "=" not in argument
        else:
            kept.append(argument)
    return [f'PEERS_ARGS="{" ".join(kept)}"'] if kept else []


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def short(value):
    """Milliseconds with three digits that count.

    >>> short(1234.5), short(12.34), short(0.056), short(None)
    ('1,234', '12.3', '0.06', '-')
    """
    if value is None:
        return "-"
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2)


def row(cells):
    return f"| {' | '.join(cells)} |"


def table(head, rows):
    return [row(head), f"|{'---|' * len(head)}", *(row(it) for it in rows), ""]


def line(figures):
    """A system's main figures while the others are still to come."""
    it = figures["bulk"]
    return (
        f"{figures['name']} {figures['version']}: {number(it['rows_per_s'])} rows/s, "
        f"{number(it['rows_per_cpu'])} rows per CPU second, {figures['bytes_per_value']:.2f} bytes a value"
    )


def syncs(figures):
    counted = figures["syncs"]
    if counted["total"] is None:
        return "by its documentation"
    return f"{counted['total']} calls for {counted['requests']} writes"


def ingest(found):
    rows = []
    for figures in found:
        it = figures["bulk"]
        rows.append(
            [
                f"{figures['name']} {figures['version']}",
                number(it["rows_per_s"]),
                number(it["rows_per_s"] * 10),
                number(it["rows_per_cpu"]),
                f"{figures['bytes_per_value']:.3f}",
                number(figures["peak_anonymous"] / 2**20),
                f"{short(it['p50_ms'])} / {short(it['p99_ms'])}",
                f"{figures['acknowledges']}; {syncs(figures)}",
            ]
        )
    head = ["system", "rows/s", "values/s", "rows per CPU second, to rest", "bytes a value", "anonymous MiB, peak"]
    return table([*head, "p50 / p99 ms of a batch", "acknowledges"], rows)


def small(found):
    rows = []
    for figures in found:
        cells = []
        for key in SMALL:
            it = figures["small"].get(key)
            cells.append(" / ".join([*(number(it[at]) for at in RATES), short(it["p50_ms"])]) if it else "-")
        rows.append([figures["name"], *cells])
    return table(["system", "1 row, 1 client", "1 row, 4 clients", "1 row, 64 clients", "100 rows, 4 clients"], rows)


def questions(found):
    rows = []
    for figures in found:
        asked = figures["queries"]
        cells = [f"{short(asked[it]['p50_ms'])} / {short(asked[it]['cpu_ms'])}" for it in QUESTIONS]
        rows.append([figures["name"], *cells])
    return table(["system", "latest", "one series, 1 h", "one series, all hours (at most 12)", "sum"], rows)


def sizes(recordings):
    stores = ["SondeDB, fast", "SondeDB, dense", "Parquet, zstd", "DuckDB", "VictoriaMetrics"]
    rows = []
    for name, found in recordings.items():
        cells = [f"{found[store]:.3f}" if store in found else "-" for store in stores]
        rows.append([name, number(found["values"]), *cells])
    return table(["recording", "values", *stores], rows)


def markdown(run):
    found = run["systems"]
    text = [
        f"{run['machine']}; {run['date']}, commit {run['commit']}, `{run['command'].replace('`', '')}`"
        f"{', with the binary that SONDE_BIN names' if run['given'] else ''}. "
        f"{number(run['rows'])} rows: {run['hosts']:,} hosts, {run['hours']:g} h, 10 tags, 10 integer fields.",
        "",
    ]
    if found:
        text += ["Batches of 10,000 lines, 4 clients:", "", *ingest(found)]
        if short_of := [it for it in found if it["bulk"]["rows"] < run["rows"]]:
            said = ", ".join(f"{it['name']} {number(it['bulk']['rows'])}" for it in short_of)
            text += [f"Of fewer rows, where the time for batches was over first: {said}.", ""]
        if restless := [it["name"] for it in found if not it["bulk"].get("rests", True)]:
            text += [f"Still at work a minute later, and not measured until they rest: {', '.join(restless)}.", ""]
        text += ["Small requests; rows/s / rows per CPU second / p50 in ms:", "", *small(found)]
        text += ["Queries; p50 in ms / CPU ms a query:", "", *questions(found)]
    for figures in found:
        if "statement" in figures:
            it = figures["statement"]
            text += [
                f"{figures['name']} in one statement: {number(it['rows_per_s'])} rows/s, {number(it['rows_per_cpu'])} "
                "rows per CPU second, its checkpoint included; the queries and bytes are of that table.",
                "",
            ]
    if run["recordings"]:
        text += ["Bytes a value of recordings:", "", *sizes(run["recordings"])]
    if found:
        text += ["Settings: " + "; ".join(f"{it['name']}: {it['settings']}" for it in found) + ".", ""]
        cpu = [it["bulk"]["client_cpu"] / it["bulk"]["seconds"] for it in found if "client_cpu" in it["bulk"]]
        requests = [it for figures in found for it in figures["small"].values()]
        small_cpu = [it["client_cpu"] / it["seconds"] for it in requests if "client_cpu" in it]
        if cpu and small_cpu:
            said = f"The sender took at most {max(cpu):.1%} of a core for batches"
            text += [f"{said}, {max(small_cpu):.0%} for small requests.", ""]
    if run["skipped"]:
        text += ["Not measured:", "", *(f"- {it}" for it in run["skipped"])]
    return "\n".join(text).rstrip() + "\n"


def put(path, text):
    """Replaces what stands between the marks.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "page.md"
    ...     _ = path.write_text(f"before\\n{BEGIN}\\nold\\n{END}\\nafter\\n")
    ...     put(path, "new\\n")
    ...     path.read_text() == f"before\\n{BEGIN}\\n\\nnew\\n\\n{END}\\nafter\\n"
    True
    """
    document = path.read_text()
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path.name} has no lines `{BEGIN}` and `{END}`")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")

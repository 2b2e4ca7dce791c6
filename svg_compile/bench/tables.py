"""The table of a stored result, the same for a terminal and for a page, and the lines that belong to it."""

from __future__ import annotations

from typing import Any

from svg_compile.inspection.render.table import Table

Result = dict[str, Any]


def title(result: Result) -> str:
    """The subject of a measurement, in one line."""
    if result["benchmark"] == "attention":
        shape = result["shape"]
        text = f" + {shape['layout']['text_len']} text" if shape["layout"]["text_len"] else ""
        return (
            f"Attention, {shape['name']}: {_grid(shape['layout'])}{text} = {shape['tokens']:,} tokens, "
            f"{shape['heads']} heads of {shape['head_dim']}, {result['dtype']}"
        )
    if result["benchmark"] == "trace":
        return "The trace of a whole model, CPU seconds"
    whole = result["benchmark"] == "forward"
    what = f"Whole forward, {result['layers']} sparse layers" if whole else "One block"
    density = f"density {result['density']:g}"
    return f"{what}, {result['model']}: {result['tokens']:,} tokens, {density}, {result['dtype']}"


def conditions(result: Result) -> str:
    """Where, when and by which versions, in a line."""
    machine = result["machine"]
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "triton", "cuda", "cudnn", "driver") if name in machine
    )
    threads = f", {machine['threads']} threads" if "threads" in machine else ""
    if result["benchmark"] == "trace":
        return (
            f"{machine['name']}; {versions}; commit {machine['commit']}, {machine['date']}; load {result['load']:.1f}."
        )
    turns = f"medians of {result['repeats']} interleaved turns"
    line = f"{machine['name']}{threads}; {versions}; commit {machine['commit']}, {machine['date']}; {turns}"
    before, after = result["clocks"]
    if before:
        line += f"; SM clock, memory clock, power, temperature under dense attention before: {before}; after: {after}"
    return line + "."


def table(result: Result) -> Table:
    """The figures."""
    tables = {"attention": _attention, "trace": _traces}
    return tables.get(result["benchmark"], _transformer)(result)


def notes(result: Result) -> list[str]:
    """The notes needed to read the figures, one line each."""
    if result["benchmark"] != "attention":
        return [f"{what}: {reason}" for what, reason in result.get("notes", {}).items()]
    lines = [f"Speedups are over {_NAMES.get(result['base'], result['base'])}"]
    if result["fastest_dense"] != result["base"]:
        lines[0] += f"; the fastest dense attention was {_NAMES[result['fastest_dense']]}"
    lines[0] += "."
    profile = [row for row in result["rows"] if row["peer"] == "profile"]
    sparse = {row["density_asked"]: row for row in result["rows"] if row["peer"] == "svg"}
    for row in profile:
        if row["density_asked"] in sparse:
            share = row["ms"]["median"] / sparse[row["density_asked"]]["ms"]["median"]
            lines.append(
                f"Profile and plan at density {row['density_asked']:g} ({result['sampled_rows']} rows): "
                f"{row['ms']['median']:.2f} ms, {share:.1%} of the sparse attention's time."
            )
    by_name = {row["name"]: row for row in result["rows"]}
    base = by_name[result["base"]]["ms"]["median"]
    for row in (row for row in result["rows"] if row["peer"] == "layer"):
        density = f"{row['density_asked']:g}"
        fit, repair = (by_name[f"{what} {density}"]["ms"]["median"] for what in ("fit", "repair"))
        lines.append(
            f"With the repair at density {density}: profile, plan and fit {fit:.2f} ms, repair {repair:.2f} ms, "
            f"together {(fit + repair) / base:.1%} of dense attention; profile, attention and repair of all heads "
            f"{row['ms']['median']:.2f} ms, {row['speedup']:.2f}x over dense."
        )
    lines += [f"Left out: {name} ({reason})." for name, reason in result["skipped"].items()]
    return lines


_NAMES = {
    "cudnn": "dense, SDPA by cuDNN",
    "flash": "dense, SDPA by FlashAttention",
    "sdpa": "dense, SDPA",
    "svg": "svg::attention",
    "hopper": "the Hopper path",
    "flex": "FlexAttention",
    "flex-flash": "FlexAttention, FLASH",
    "transpose": "copy, band, copy back",
}


def _attention(result: Result) -> Table:
    headers = (
        "", "heads", "density", "ms", "p20 to p80", "TFLOP/s tiles", "TFLOP/s mask", "speedup", "x density", "GB",
    )  # fmt: skip
    rows = []
    for row in result["rows"]:
        if row["kind"] == "profile":
            continue
        ms = row["ms"]
        rows.append(
            (
                _NAMES.get(row["peer"], row["peer"]),
                row["kind"],
                f"{row['density']:.3f}",
                _ms(ms["median"]),
                f"{_ms(ms['p20'])} to {_ms(ms['p80'])}",
                _rate(row["tflops_tiles"]),
                _rate(row["tflops_pairs"]),
                f"{row['speedup']:.2f}x",
                f"{row['efficiency']:.2f}",
                f"{row['least_gigabytes']:.2f}",
            )
        )
    return Table(headers, tuple(rows))


def _transformer(result: Result) -> Table:
    """A part a line: dense, sparse, and what of a step it is."""
    dense, sparse = result["dense"], result["sparse"]
    rows = []
    for part in sorted({*dense["parts"], *sparse["parts"]}, key=lambda name: -dense["parts"].get(name, 0.0)):
        one, other = dense["parts"].get(part, 0.0), sparse["parts"].get(part, 0.0)
        ratio = f"{one / other:.2f}x" if one and other else ""
        rows.append((part, _ms(one) if one else "", _ms(other) if other else "", ratio))
    one, other = dense["ms"]["median"], sparse["ms"]["median"]
    rows.append(("whole", _ms(one), _ms(other), f"{result['speedup']:.2f}x"))
    for name, key, unit in (
        ("peak memory", "peak_gigabytes", "GB"),
        ("compile, cold caches", "compile_cold_seconds", "s"),
        ("compile, warm caches", "compile_warm_seconds", "s"),
    ):
        if dense.get(key) is not None:
            ratio = f"{sparse[key] / dense[key]:.3f} of it"
            rows.append((name, f"{dense[key]:.2f} {unit}", f"{sparse[key]:.2f} {unit}", ratio))
    for run in result["projected"]:
        what = f"projected: {run['steps']} steps, {run['dense_steps']} dense"
        rows.append((what, f"{run['dense_seconds']:.0f} s", f"{run['svg_seconds']:.0f} s", f"{run['speedup']:.2f}x"))
    return Table(("", "inductor, ms", "svg, ms", "ratio"), tuple(rows))


def _traces(result: Result) -> Table:
    """A model and a kind of look a line."""
    rows = []
    for row in result["rows"]:
        what = "explain" if row["what"] == "explain" else "first call, blocks compiled"
        again = f"{row['again']:.2f} s" if "again" in row else ""
        rows.append((row["model"], str(row["layers"]), what, f"{row['seconds']:.1f} s", again, str(row["sparse"])))
    return Table(("model", "blocks", "what", "CPU", "the next call", "sparse attentions"), tuple(rows))


def _grid(layout: dict[str, Any]) -> str:
    return "x".join(str(layout[axis]) for axis in ("frames", "height", "width"))


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _rate(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"

"""docs/fidelity-tables.md and its pictures, written from the rows that fidelity.py has stored."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from PIL import Image

from pictures import labelled
from svg_compile import VideoLayout

Row = dict  # what one line of rows.jsonl holds

NAMES = {
    "shared": "svg_compile: half-widths by need over all layers, repaired",
    "both": "half-widths by need in each layer, repaired",
    "repair": "uniform half-widths, repaired",
    "widths": "half-widths by need, no repair",
    "profile": "profile of 64 rows: uniform half-widths, no repair",
    "oracle": "profile of all rows (oracle)",
    "spatial": "all heads spatial",
    "temporal": "all heads temporal",
    "random": "random kinds",
    "published": "masks and profile of the published code",
    "clusters": "Sparse VideoGen2: clusters by k-means, top-p",
    "floor": "dense, computed by the sparse engine (floor)",
}
MAIN = (0.3, 0.25)
SETTING = ("weights", "frames", "size", "steps", "dtype", "device")


def write_page(rows: list[Row], page: Path, study: Path, note: str = "") -> None:
    """Write the page for the setting (weights, size, steps) of the last row, and its pictures.

    `study` is the folder of the rows and of the frames of the first prompt.
    """
    if not rows:
        raise ValueError("no rows are stored yet: run examples/fidelity.py first")
    # Rows of other weights, sizes or steps may stand in the file; the page is about the last study alone.
    setting = {key: rows[-1][key] for key in SETTING}
    rows = [row for row in rows if all(row[key] == setting[key] for key in SETTING)]
    pictures = page.parent / "fidelity"
    pictures.mkdir(parents=True, exist_ok=True)
    main_rows = [row for row in rows if (row["density"], row["dense_steps"]) == MAIN]
    draw_planners(enough(main_rows), pictures / "planners.png")
    draw_lines(enough(rows), pictures / "density.png")
    shown = draw_frames(study, setting["weights"], pictures / "frames.png")
    parts = (
        head(setting, rows, note),
        planners(main_rows),
        shown,
        why(main_rows),
        rows_and_gates(rows),
        by_density(rows),
        grid(setting, rows),
        [""],
    )
    page.write_text("\n".join(line for part in parts for line in part))


def enough(rows: list[Row]) -> list[Row]:
    """The rows of cases that at least half of the prompts have: means of fewer prompts are not comparable."""
    prompts = len({row["prompt"] for row in rows})
    counts = Counter((row["planner"], row["density"], row["dense_steps"]) for row in rows)
    return [row for row in rows if 2 * counts[row["planner"], row["density"], row["dense_steps"]] >= prompts]


def head(setting: dict, rows: list[Row], note: str) -> list[str]:
    tokens = setting["frames"] * (setting["size"] // 4) ** 2
    prompts = len({row["prompt"] for row in rows})
    return [
        "# Fidelity: the tables",
        "",
        "How near sparse generation comes to the dense one with the example model; what it means is told in",
        "[fidelity](fidelity.md). Written by `python examples/fidelity.py --page docs/fidelity-tables.md` from stored",
        "rows; do not edit.",
        "",
        f"- {prompts} prompts, each with its own noise; {len(rows)} generations compared.",
        f"- {setting['frames']} frames of {setting['size']} x {setting['size']} pixels, {tokens} tokens, "
        f"{setting['steps']} steps, {setting['dtype']} on {setting['device']}; weights {setting['weights']}.",
        "- PSNR and SSIM are against the dense result by the same dense attention, over all frames in 8 bits.",
        "  Means over prompts, with the standard deviation over prompts behind them.",
        "- The model is given keyframes, every fifth frame and the last; PSNR of the drawn frames leaves them out.",
        "- LPIPS stands where the `lpips` package and its weights were at hand.",
        "",
        *([note, ""] if note else []),
    ]


def planners(rows: list[Row]) -> list[str]:
    lines = [
        f"## Ways to plan, at density {MAIN[0]} and {MAIN[1]:.0%} dense steps",
        "",
        "![PSNR by planner](fidelity/planners.png)",
        "",
        "| | PSNR, dB | worst | above the profile | drawn frames, dB | SSIM | LPIPS | temporal heads | prompts |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    profile = {row["prompt"]: row["psnr"] for row in rows if row["planner"] == "profile"}
    for planner, name in NAMES.items():
        mine = [row for row in rows if row["planner"] == planner]
        if not mine:
            continue
        gains = [row["psnr"] - profile[row["prompt"]] for row in mine if row["prompt"] in profile]
        gain = f"{mean(gains):+.2f}" if gains and planner != "profile" else ""
        shares = [row["temporal_share"] for row in mine if row["temporal_share"] is not None]
        share = f"{mean(shares):.0%}" if shares else ""
        lines.append(
            f"| {name} | {spread(mine, 'psnr')} | {min(row['psnr'] for row in mine):.1f} | {gain} | "
            f"{spread(mine, 'psnr_drawn')} | {spread(mine, 'ssim', 3)} | {spread(mine, 'lpips', 3)} | {share} | "
            f"{len(mine)} |"
        )
    lines += [
        "",
        "Density is what heads compute, sink included; it is the same for all but the floor. The published code has no",
        "true first-frame sink for temporal heads, and its profile looks at other masks and at early rows only.",
        "",
    ]
    return lines


def why(rows: list[Row]) -> list[str]:
    """What the heads are like, from the oracle's runs."""
    known = [row for row in rows if "best_error" in row]
    if not known:
        return []
    figures = [
        mean(row[key] for row in known) for key in ("spatial_error", "temporal_error", "best_error", "agreement")
    ]
    return [
        "## Are the heads sharp?",
        "",
        "Error of a head's output relative to its dense output (root mean square), the mean over heads, layers and",
        f"sparse steps: **{figures[0]:.3f}** spatial, **{figures[1]:.3f}** temporal, **{figures[2]:.3f}** by the",
        f"better of both. 64 sampled rows choose as all rows do for **{figures[3]:.1%}** of the heads.",
        "",
    ]


def rows_and_gates(rows: list[Row]) -> list[str]:
    """The errors of rows before and after the repair, and how many heads each part changes, from the watched runs."""
    known = [row for row in rows if "repaired_p99" in row]
    if not known:
        return []
    lines = [
        "## Rows and gates",
        "",
        "With everything on: the error of a row, relative to the root mean square of its head's dense rows, over all",
        "heads, layers and sparse steps; and the share of heads whose repair is on, and whose half-width is not the",
        "one that the density buys all heads.",
        "",
        "| density | bands: mean, p99 | repaired: mean, p99 | heads repaired | heads moved | prompts |",
        "|---|---|---|---|---|---|",
    ]
    for density in sorted({row["density"] for row in known}):
        mine = [row for row in known if row["density"] == density]
        keys = ("bands_error", "bands_p99", "repaired_error", "repaired_p99", "repaired_heads", "moved_heads")
        line = "| {} | {:.3f}, {:.3f} | {:.3f}, {:.3f} | {:.1%} | {:.1%} | {} |"
        lines.append(line.format(density, *(mean(row[key] for row in mine) for key in keys), len(mine)))
    return [*lines, ""]


# What goes along the line of densities, from the bare profile to all parts together.
PARTS = ("profile", "widths", "repair", "both", "shared", "clusters")


def by_density(rows: list[Row]) -> list[str]:
    """What each part adds, and the strongest rival, along the densities at the main share of dense steps."""
    line = [row for row in rows if row["planner"] in PARTS and row["dense_steps"] == MAIN[1]]
    shown = [planner for planner in PARTS if any(row["planner"] == planner for row in line)]
    if not shown:
        return []
    lines = [
        f"## By density, at {MAIN[1]:.0%} dense steps",
        "",
        "![PSNR by density and dense steps](fidelity/density.png)",
        "",
        "PSNR in dB, mean over prompts and worst prompt (prompts):",
        "",
        f"| density asked | {' | '.join(NAMES[planner] for planner in shown)} |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for density in sorted({row["density"] for row in line}):
        cells = []
        for planner in shown:
            psnrs = [row["psnr"] for row in line if (row["planner"], row["density"]) == (planner, density)]
            cells.append(f"{mean(psnrs):.1f}, {min(psnrs):.1f} ({len(psnrs)})" if psnrs else "")
        lines.append(f"| {density} | {' | '.join(cells)} |")
    return [*lines, ""]


def grid(setting: dict, rows: list[Row]) -> list[str]:
    """The bare profile over densities and shares of dense steps."""
    layout = VideoLayout(setting["frames"], setting["size"] // 4, setting["size"] // 4)
    mine = [row for row in rows if row["planner"] == "profile"]
    if not mine:
        return []
    densities = sorted({row["density"] for row in mine})
    shares = sorted({row["dense_steps"] for row in mine})
    columns = ["density asked (reached by spatial, temporal heads)", *(f"{share:.0%} dense steps" for share in shares)]
    lines = [
        f"## Density and dense steps: {NAMES['profile']}",
        "",
        "PSNR in dB / SSIM (prompts):",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * (len(shares) + 1) + "|",
    ]
    for density in densities:
        cells = []
        for share in shares:
            cell = [row for row in mine if (row["density"], row["dense_steps"]) == (density, share)]
            figures = (mean(row[key] for row in cell) for key in ("psnr", "ssim")) if cell else ()
            cells.append("{:.1f} / {:.3f} ({})".format(*figures, len(cell)) if cell else "")
        reached = [layout.density(layout.half_width_for(density, kind), kind) for kind in (0, 1)]
        label = "{} ({:.3f}, {:.3f})".format(density, *reached)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def spread(rows: list[Row], key: str, digits: int = 1) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return ""
    around = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{around}"


def draw_frames(study: Path, weights: str, path: Path) -> list[str]:
    """The first prompt's frames, one row a planner; nothing where none were kept."""
    rows = [("dense", "dense"), *NAMES.items()]
    found = [(name, study / f"frames_{weights}_{planner}.png") for planner, name in rows if planner != "floor"]
    strips = [labelled(name, np.asarray(Image.open(file))) for name, file in found if file.exists()]
    if not strips:
        return []
    Image.fromarray(np.concatenate(strips)).save(path)
    return ["Frames of the first prompt:", "", "![Frames by planner](fidelity/frames.png)", ""]


def draw_planners(rows: list[Row], path: Path) -> None:
    """One line a planner, one dot a prompt, a bar at the mean."""
    # The floor stands in the table; in the picture it would only stretch the scale.
    shown = [name for name in NAMES if name != "floor" and any(row["planner"] == name for row in rows)]
    figure, axes = _figure(7.5, 1.0 + 0.45 * len(shown))
    for place, planner in enumerate(shown):
        values = [row["psnr"] for row in rows if row["planner"] == planner]
        colour = "#3b76c4" if planner == "shared" else "#888888"
        axes.scatter(values, [place] * len(values), s=14, alpha=0.5, color=colour)
        axes.plot([mean(values)] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.5)
    axes.set_yticks(range(len(shown)), [NAMES[planner] for planner in shown])
    axes.invert_yaxis()
    axes.set(xlabel="PSNR to dense, dB (dots: prompts; bars: means)")
    _save(figure, path)


def draw_lines(rows: list[Row], path: Path) -> None:
    """PSNR over density: a line for each part, and for the bare profile one for each share of dense steps."""
    figure, axes = _figure(6, 3.6)
    for planner, style in zip(PARTS, ("-", ":", "--", "-.", "-", ":"), strict=True):
        mine = [row for row in rows if row["planner"] == planner]
        for share in sorted({row["dense_steps"] for row in mine}):
            points: dict[float, list[float]] = defaultdict(list)
            for row in mine:
                if row["dense_steps"] == share:
                    points[row["density"]].append(row["psnr"])
            line = sorted((density, mean(values)) for density, values in points.items())
            label = f"{share:.0%} dense steps, {NAMES[planner].removeprefix('svg_compile: ')}"
            axes.plot(*zip(*line, strict=True), style, marker="o", markersize=4, label=label)
    axes.set(xlabel="density asked", ylabel="PSNR to dense, dB")
    axes.legend(frameon=False, fontsize=7)
    _save(figure, path)


def _figure(width: float, height: float):  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    figure.clear()

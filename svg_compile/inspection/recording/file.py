"""A recording as two files: NAME.npz holds the numbers of all heads, NAME.json says what they belong to.

NAME.json    {"format": 1, "kind": "svg_compile recording", "svg_compile": version, "entries": [...]}, an entry being
             {"model", "run", "step", "total", "call", "layer", "shape", "layout"}; shape is [B, H], null where the
             forward was dense; layout null or [frames, height, width, text_len, text_first, block]
NAME.npz     kinds int8 [n], half_widths int32 [n], errors float32 [n, 2] = (spatial, temporal): the heads of all sparse
             entries in their order, each entry's in the order of its [B, H]

NAME.json holds the checksum of NAME.npz ("sha256"), so that a damaged, cut or foreign one is found out; files of before
that had none are read without.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from svg_compile.errors import SvgError
from svg_compile.inspection.recording.entry import Entry
from svg_compile.kernels.plan import check_plan
from svg_compile.layout import VideoLayout

# Raised when a name is renamed or dropped; added names do not count.
FORMAT = 1
_KIND = "svg_compile recording"
_FACTS = ("model", "run", "step", "total", "call", "layer")


def save(entries: Sequence[Entry], path: str | Path) -> tuple[Path, Path]:
    """Write both files, replacing what is there; returns (NAME.npz, NAME.json)."""
    numpy = _numpy()
    arrays, facts = _paths(path)
    kinds = [entry.kinds.flatten().to(torch.int8) for entry in entries if entry.kinds is not None]
    widths = [entry.half_widths.flatten() for entry in entries if entry.half_widths is not None]
    errors = [entry.errors.reshape(-1, 2) for entry in entries if entry.errors is not None]
    repaired = [torch.zeros(0)]
    for entry in entries:
        if entry.kinds is not None:
            # NaN stands for no number.
            none = torch.full((entry.kinds.numel(),), float("nan"))
            repaired.append(none if entry.repaired is None else entry.repaired.flatten())
    numbers = io.BytesIO()
    numpy.savez_compressed(
        numbers,
        kinds=torch.cat([torch.zeros(0, dtype=torch.int8), *kinds]).numpy(),
        half_widths=torch.cat([torch.zeros(0, dtype=torch.int32), *widths]).numpy(),
        errors=torch.cat([torch.zeros(0, 2), *errors]).numpy(),
        repaired=torch.cat(repaired).numpy(),
    )
    data = numbers.getvalue()
    version = importlib.metadata.version("svg-compile")
    top = {"format": FORMAT, "kind": _KIND, "svg_compile": version, "sha256": _checksum(data)}
    text = json.dumps({**top, "entries": [_facts(entry) for entry in entries]})
    for file, content in ((arrays, data), (facts, text.encode())):
        # In one step: whoever reads meanwhile, or is left with what an interrupted save wrote, has the old file whole.
        part = file.with_name(f"{file.name}.part")
        part.write_bytes(content)
        os.replace(part, file)
    return arrays, facts


def load(path: str | Path) -> tuple[Entry, ...]:
    """Read the entries back; FileNotFoundError where a file is missing, SvgError where the files are no recording, are
    damaged, do not belong together, or are of another format.
    """
    numpy = _numpy()
    arrays, facts = _paths(path)
    text, data = _read(facts), _read(arrays)
    try:
        top = json.loads(text)
    except ValueError as error:
        raise SvgError(f"{facts} is not a recording of svg_compile, or it is damaged: {error}.") from error
    if not isinstance(top, dict) or top.get("kind") != _KIND:
        raise SvgError(f"{facts} is not a recording of svg_compile.")
    if top.get("format") != FORMAT:
        raise SvgError(f"{facts} has format {top.get('format')!r}, this svg_compile reads {FORMAT}: record anew.")
    if top.get("sha256", _checksum(data)) != _checksum(data):
        raise SvgError(f"{facts} and {arrays.name} do not belong together, or one is damaged: the checksum is another.")
    try:
        # Never unpickles: what is in the file are numbers, or it is refused.
        with numpy.load(io.BytesIO(data), allow_pickle=False) as found:
            kinds = torch.from_numpy(found["kinds"].astype(numpy.int32))
            widths = torch.from_numpy(found["half_widths"].astype(numpy.int32))
            errors = torch.from_numpy(found["errors"].astype(numpy.float32))
            # Recordings of older versions do not have it.
            repaired = torch.full((len(errors),), float("nan"))
            if "repaired" in found:
                repaired = torch.from_numpy(found["repaired"].astype(numpy.float32))
        check_plan(torch.stack((kinds, widths), dim=-1)[None])
        sizes = [_heads(row) for row in top["entries"]]
        arrays_of_heads = (part.split(sizes) for part in (kinds, widths, errors, repaired))
        parts = zip(top["entries"], *arrays_of_heads, strict=True)
        return tuple(_entry(*part) for part in parts)
    # Whatever numpy, zipfile and the conversions make of bytes and values that nobody wrote so.
    except Exception as error:
        raise SvgError(
            f"{facts} and {arrays.name} do not belong together, or one is damaged: {type(error).__name__}: {error}"
        ) from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no {file}: a recording is two files, NAME.npz and NAME.json.") from error
    except OSError as error:
        raise SvgError(f"{file} cannot be read: {error.strerror}.") from error


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _numpy() -> Any:
    """torch works without it, so it is no dependency."""
    try:
        import numpy
    except ImportError as error:
        raise SvgError("recordings are kept as numpy files: pip install numpy") from error
    return numpy


def _paths(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".npz", ".json") else path
    return Path(f"{stem}.npz"), Path(f"{stem}.json")


def _facts(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(entry, name) for name in _FACTS}
    row["shape"] = None if entry.kinds is None else list(entry.kinds.shape)
    row["layout"] = None if entry.layout is None else list(dataclasses.astuple(entry.layout))
    return row


def _heads(row: dict[str, Any]) -> int:
    return 0 if row["shape"] is None else math.prod(_shape(row))


def _shape(row: dict[str, Any]) -> tuple[int, int]:
    batch, heads = row["shape"]
    if min(batch, heads) < 0:
        raise ValueError(f"a shape of {row['shape']}")
    return batch, heads


def _entry(
    row: dict[str, Any], kinds: torch.Tensor, widths: torch.Tensor, errors: torch.Tensor, repaired: torch.Tensor
) -> Entry:
    facts = {name: row[name] for name in _FACTS}
    for name, value in facts.items():
        expected = (str,) if name in ("model", "layer") else (int,)
        if not isinstance(value, expected) and not (value is None and name in ("step", "total")):
            raise TypeError(f"{name} is {value!r}")
    facts["layout"] = None if row["layout"] is None else VideoLayout(*row["layout"])
    if row["shape"] is None:
        return Entry(**facts)
    shape = _shape(row)
    facts["repaired"] = None if bool(repaired.isnan().all()) else repaired.view(shape)
    return Entry(**facts, kinds=kinds.view(shape), half_widths=widths.view(shape), errors=errors.view(*shape, 2))

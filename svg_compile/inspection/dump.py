"""Graph dumps: what every pass saw and left, as numbered text files with an index to open in a browser.

    dump_dir/pid4711-x1y2z3/            one folder a process, readable by its owner alone
        index.html
        graph_000/
            00_dynamo.txt               the graph that Dynamo traced, shapes and dtypes in its comments
            01_token_axes.txt           what the axes of each attention are made of
            02_find_attention.txt       the decision table
            03_rewrite_attention.txt    the graph after the rewrite
            04_op_counts.txt            how often each operator stands before and after
            05_inductor_000_sparse.txt  the code that Inductor made; and of the dense variant, where there is one

Text only: no tensor values are written. Graph text can show paths and the model's structure. A dump is an aid: where a
file cannot be written, the compile goes on, and the first error is kept in `ProcessDump.error`.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from torch import fx

from svg_compile._compat.graphs import graph_nodes, output_code, target_name
from svg_compile.decisions import Decisions
from svg_compile.errors import OptionError
from svg_compile.inspection.render import templates
from svg_compile.inspection.render.text import to_text

# One file, and all files of one process, at most.
MAX_FILE_BYTES = 64 * 2**20
MAX_TOTAL_BYTES = 1024 * 2**20

# Stage -> description of its file, for the index.
_STAGES = {
    "dynamo": "the graph that Dynamo traced, with shapes, strides and source lines",
    "token_axes": "what the axes of each attention's query, key and value are made of",
    "find_attention": "the decision on each attention, and why",
    "rewrite_attention": "the graph after the rewrite",
    "op_counts": "how often each operator stood in the graph before and after",
    "inductor": "code that Inductor made",
}
# Names an environment variable too, for programs whose options are out of reach.
DUMP_VARIABLE = "SVG_COMPILE_DUMP_DIR"


@dataclass
class GraphDump:
    """The dump of one graph, filled stage by stage as the passes run."""

    folder: Path
    process: ProcessDump
    summary: str = ""
    notes: list[str] = field(default_factory=list)
    files: list[tuple[str, int]] = field(default_factory=list)
    before: Counter[str] = field(default_factory=Counter)
    counts: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    def graph(self, stage: str, graph_module: fx.GraphModule) -> None:
        """Write a graph as Python code, with shapes, strides, dtypes and devices."""
        text = graph_module.print_readable(print_output=False, include_stride=True, include_device=True)
        self.text(stage, str(text))
        counts = op_counts(graph_module)
        if not self.before:
            self.before = counts
        elif counts != self.before:
            self.counts = op_count_diff(self.before, counts)
            self.text("op_counts", self.counts)

    def text(self, stage: str, text: str) -> None:
        """Write a numbered text file; a file over the cap is cut and says so."""
        data = text.encode("utf-8", "replace")
        room = min(MAX_FILE_BYTES, MAX_TOTAL_BYTES - _written(self.folder.parent))
        if len(data) > room:
            data = data[: max(room, 0)] + b"\n[cut: the dump's size cap was reached]\n"
        file = f"{len(self.files):02d}_{re.sub(r'[^a-z0-9_]', '_', stage.lower())}.txt"
        with self.process.keep_error():
            # Exclusive: nothing that lies there already, a link least of all, is written through.
            with open(self.folder / file, "xb") as handle:
                handle.write(data)
            self.files.append((file, len(data)))

    def report(self, report: Decisions) -> None:
        """Write the decision table, which the index repeats."""
        self.summary = to_text(report)
        self.text("find_attention", self.summary + "\n")

    @contextmanager
    def inductor_code(self) -> Iterator[None]:
        """Collect the code that Inductor makes, or loads from its cache, in the block."""
        codes: list[str] = []
        with output_code(codes.append):
            yield
        for index, code in enumerate(codes):
            variant = "sparse" if "torch.ops.svg." in code else "dense"
            self.text(f"inductor_{index:03d}_{variant}", code)
        if not codes:
            self.notes.append("Inductor's code came from a cache that does not show it; clear the cache to see it.")


@dataclass
class ProcessDump:
    """The dumps of one process under one folder. error: the first one that kept a file from being written."""

    folder: Path
    graphs: list[GraphDump] = field(default_factory=list)
    error: OSError | None = None

    def new_graph(self) -> GraphDump:
        with self.keep_error():
            if not self.folder.is_dir():
                # Removed since: under another name, as nobody knows who made what stands at the old one by now.
                self.folder, self.graphs = _new_folder(self.folder.parent), []
            folder = self.folder / f"graph_{len(self.graphs):03d}"
            folder.mkdir(mode=0o700)
            self.graphs.append(GraphDump(folder, self))
            return self.graphs[-1]
        return GraphDump(self.folder / "none", self)

    @contextmanager
    def keep_error(self) -> Iterator[None]:
        """Keep the first OSError of the block, and go on behind it."""
        try:
            yield
        except OSError as error:
            self.error = self.error or error

    def warn_once(self) -> None:
        """Warn of the error where there is one, and forget it."""
        if self.error is not None:
            warnings.warn(f"svg: the graph dump is not complete: {self.error}", stacklevel=3)
            self.error = None

    def write_index(self) -> None:
        """Write index.html over everything dumped so far, atomically: a reader never gets half of it."""
        graphs = [
            {
                "name": graph.name,
                "summary": graph.summary,
                "notes": graph.notes,
                "counts": graph.counts,
                "files": [(file, _size(size), _described(file)) for file, size in graph.files],
            }
            for graph in self.graphs
        ]
        body = templates.fill("dump_index", pid=os.getpid(), graphs=graphs)
        text = templates.page("svg_compile graph dump", body)
        with self.keep_error():
            handle, path = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(path, self.folder / "index.html")


def process_dump(dump_dir: str, asked_by: str = "option 'dump_dir'") -> ProcessDump:
    """This process's dump under `dump_dir`, made at first use; OptionError, which names `asked_by`, where it cannot."""
    try:
        return _process_dump(os.path.abspath(dump_dir), os.getpid())
    except OSError as error:
        raise OptionError(f"{asked_by}: cannot make a folder in {dump_dir!r}: {error}") from error


def asked_for(dump_dir: str | None) -> ProcessDump | None:
    """This process's dump, if the option or the environment variable asks for one."""
    if dump_dir:
        return process_dump(dump_dir)
    folder = os.environ.get(DUMP_VARIABLE)
    return process_dump(folder, f"environment variable {DUMP_VARIABLE}") if folder else None


@cache
def _process_dump(dump_dir: str, pid: int) -> ProcessDump:
    return ProcessDump(_new_folder(Path(dump_dir)))


def _new_folder(parent: Path) -> Path:
    """A folder of this process, that its owner alone can read."""
    os.makedirs(parent, mode=0o700, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"pid{os.getpid()}-", dir=parent))


def op_counts(graph_module: fx.GraphModule) -> Counter[str]:
    """How often each operator is called in a graph and its child graphs."""
    counts: Counter[str] = Counter()
    for _, node in graph_nodes(graph_module):
        if node.op in ("call_function", "call_method", "call_module"):
            counts[target_name(node)] += 1
    return counts


def op_count_diff(before: Counter[str], after: Counter[str]) -> str:
    """One line an operator whose count changed."""
    changed = sorted(name for name in before | after if before[name] != after[name])
    width = max(map(len, changed))
    lines = [f"{name:{width}}  {before[name]:5d} -> {after[name]:5d}" for name in changed]
    return "\n".join(lines) + "\n"


def _size(count: int) -> str:
    return (
        f"{count} B" if count < 2**10 else f"{count / 2**10:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"
    )


def _described(file: str) -> str:
    stage = re.sub(r"^\d+_|\.txt$", "", file)
    if stage.startswith("inductor"):
        return f"{_STAGES['inductor']}, {stage.rpartition('_')[2]} variant"
    return _STAGES.get(stage, "")


def _written(folder: Path) -> int:
    """Bytes of all text files; of one that goes meanwhile, none."""
    sizes = 0
    for path in folder.rglob("*.txt"):
        with suppress(FileNotFoundError):
            sizes += path.lstat().st_size
    return sizes

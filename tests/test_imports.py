"""The direction of imports, the files that may use private names of torch and triton, and the cost of importing."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from source_tree import circles, import_graph, imported, modules, names_defined, private_names

# A module may import modules of its own layer and of the layers before it.
LAYERS = (
    {"errors"},
    {"_compat"},
    {"layout"},
    {"mask"},
    {"option_checks"},
    {"config"},
    {"decisions"},
    {"kernels"},
    {"functional"},
    {"passes"},
    {"inspection"},
    {"regional"},
    {"runtime"},
    {"inspection.recording"},
    {"backend"},
    {"inspection.dump_run", "inspection.bisection"},
    {"zoo"},
    {"bench", "targets", "cli_checks"},
    {"cli"},
)
# Files that import each other for their types alone. The list may only get shorter.
CIRCLES_OF_TYPES: set[frozenset[str]] = set()
# Private names outside of svg_compile/_compat. The list may only get shorter: what is gone from a file goes from here.
OUTSIDE_COMPAT = {
    "svg_compile.inspection.bare_clone": {
        "._compiled_call_impl",
        "._diffusers_hook",
        "._hf_hook",
        "._modules",
        "._old_forward",
        "._original_forward",
        "._parallel_config",
        "._torchdynamo_orig_callable",
    },
    "svg_compile.inspection.bisection.switched_model": {"._schema"},
    "svg_compile.inspection.known_values": {"torch.utils._python_dispatch.TorchDispatchMode"},
    "svg_compile.inspection.preserve_state": {"._buffers", "._compiled_call_impl", "._parameters"},
    "svg_compile.kernels.triton.launch": {"torch._inductor.config"},
    "svg_compile.passes.axes.rules.rowwise": {
        "._dyn_quant_matmul_4bit",
        "._weight_int4pack_mm",
        "._weight_int4pack_mm_for_cpu",
        "._weight_int4pack_mm_with_scales_and_zeros",
        "._weight_int8pack_mm",
    },
    "svg_compile.passes.axes.tracker": {"._schema", "torch.utils._python_dispatch.TorchDispatchMode"},
    "svg_compile.passes.node_origin": {"._diffusers_hook", "._hf_hook", "._modules", "._old_forward"},
    "svg_compile.passes.symbols": {
        "torch.utils._sympy.interp.sympy_interp",
        "torch.utils._sympy.reference.PythonReferenceAnalysis",
    },
    "svg_compile.regional.blocks": {"._compiled_call_impl"},
    "svg_compile.regional.wrappers": {"._diffusers_hook", "._parallel_config"},
    # What diffusers' own loading reads; a model class without it is cast as a whole.
    "svg_compile.targets": {"._keep_in_fp32_modules"},
}


def layer(module: str) -> int:
    parts = module.removeprefix("svg_compile").removeprefix(".").split(".")
    for name in (".".join(parts[:2]), parts[0]):
        for depth, names in enumerate(LAYERS):
            if name in names:
                return depth
    return len(LAYERS)


MODULES = [name for name in modules() if name != "svg_compile"]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    names = imported(ast.parse(modules()[module].read_text()), types_too=True)
    for name in names:
        if name.startswith("svg_compile."):
            assert layer(name) <= layer(module), f"{module} imports {name}"
    # Of the checkout they are packages of svg_compile, and elsewhere somebody else's.
    assert not any(name.split(".")[0] in ("diffusers", "kernels", "passes") for name in names)
    assert "svg_compile" not in names, f"{module} imports the package as a whole"


def test_every_module_has_a_layer() -> None:
    assert [name for name in MODULES if layer(name) == len(LAYERS)] == []


def test_no_files_import_each_other_at_import_time_or_later() -> None:
    assert circles(import_graph(types_too=False)) == set()


def test_files_that_import_each_other_for_types_are_listed() -> None:
    assert circles(import_graph(types_too=True)) == CIRCLES_OF_TYPES


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("svg_compile._compat")])
def test_private_names_of_torch_and_triton_stand_in_compat_alone(module: str) -> None:
    found = private_names(modules()[module].read_text(), names_defined())
    known = OUTSIDE_COMPAT.get(module, set())
    assert found - known == set(), f"move it to svg_compile/_compat: {found - known}"
    assert known - found == set(), f"{module} uses it no more, take it off OUTSIDE_COMPAT: {known - found}"


def test_the_exceptions_are_modules() -> None:
    assert OUTSIDE_COMPAT.keys() <= set(MODULES)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import torch\ntorch._dynamo.reset()", {"torch._dynamo"}),
        ("from torch._inductor import config", {"torch._inductor.config"}),
        ("from torch.utils._pytree import tree_map as mapped", {"torch.utils._pytree.tree_map"}),
        ("def f():\n    import triton._C.libtriton", {"triton._C.libtriton"}),
        ("def f(func):\n    return func._schema.name", {"._schema"}),
        ("model = getattr(model, '_orig_mod', model)", {"._orig_mod"}),
        ("from torch.ops import aten\naten._to_copy", set()),
        ("import torch\nclass A:\n    def f(self):\n        return self._mine, torch.nn", set()),
    ],
)
def test_the_search_for_private_names_finds_them(text: str, found: set[str]) -> None:
    assert private_names(text, frozenset({"_mine"})) == found


def test_the_search_for_circles_finds_them() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == {frozenset("abc")}


def test_importing_svg_compile_loads_nothing_heavy() -> None:
    code = (
        "import sys, svg_compile; svg_compile.VideoLayout(2, 2, 2);"
        "print([m for m in ('torch._inductor', 'torch._dynamo', 'triton', 'diffusers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

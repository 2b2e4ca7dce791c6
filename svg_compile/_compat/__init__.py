"""Every private or version-dependent torch API that svg_compile touches, in one place.

sizes: integers that may be symbolic. graphs: fake tensors, traced graphs. dynamo: frames, placeholders, compiling.
inductor: compiling a graph, options by name. modules: the wrapper of `torch.compile`. pytree: nests of containers.
gpu: operators that launch kernels, compile caches. versions: the tested range.

No file of this folder imports another part of svg_compile. Where one of torch's internals is not as expected, a
function here answers "unknown", which its callers refuse; tests/test_compat.py has a test for each assumption, and
tests/test_imports.py keeps private names out of all other folders.
"""

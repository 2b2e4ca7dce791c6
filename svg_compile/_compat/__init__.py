"""Every private or version-dependent torch API that svg_compile touches, in one place.

sizes: integers that may be symbolic. graphs: fake tensors, traced graphs. dynamo: frames, placeholders, compiling.
gpu: operators that launch kernels, compile caches. versions: the tested range.
"""

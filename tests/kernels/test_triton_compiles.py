"""Triton's kernels are compiled for a GPU; the interpreter takes much that the compiler does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# That needs no GPU, but a process without the interpreter.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from gpumatch.kernels import triton_maxsim, triton_topk

def compiles(kernel, types, constants, others="*i64", **options):
    types = {name: "constexpr" if name in constants else types.get(name, others) for name in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, types, constants)
    target = GPUTarget("cuda", 90, 32)
    print(len(triton.compile(source, target=target, options={"enable_fp_fusion": True, **options}).asm["cubin"]) > 0)

for axis in (0, 1):
    types = {"cells": "*fp32", "means": "*fp32", "n_terms": "i32", "n_own": "i32", "n_other": "i32"}
    compiles(triton_maxsim._mean_of_best, types, {"AXIS": axis, "BLOCK": triton_maxsim.BLOCK})
of_topk = {name: getattr(triton_topk, name) for name in ("ROOM", "BLOCK_Q", "BLOCK_R", "BLOCK_W", "BLOCK")}
of_topk |= {"W": 384, "WORDS": triton_topk.BLOCK_R // 32}
types = {"queries": "*fp16", "rows": "*fp16", "least": "*fp32", "hidden": "*i64"}
types |= {name: "*i32" for name in ("bits", "places", "counts")} | {"n_words": "i64"}
for kernel in (triton_topk._reaching, triton_topk._note):
    some = {name: value for name, value in of_topk.items() if name in kernel.arg_names}
    compiles(kernel, types, some, others="i32", num_warps=8 if "W" in some else 4, num_stages=3)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["True"] * 4), done.stderr

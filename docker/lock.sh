#!/bin/sh
# Writes the requirements files of this folder: every package of an image, and the hashes of its files. Run it after a
# change of constraints.txt or of the dependencies in pyproject.toml.
#
#   pip install uv && docker/lock.sh            the uv that runs it is the one that the images are made with
#
# UV_FIND_LINKS   a folder with the wheel of torch's CPU build, where PyTorch's own index is out of reach. The CPU file
#                 then has the hash of that wheel alone: add the other Python's by hand.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Whoever installs has indexes of their own: no address of one is written down, nor a path of this machine.
compile() {
    uv pip compile --quiet --no-progress --no-annotate --no-emit-index-url --no-emit-find-links \
        --custom-compile-command docker/lock.sh "$@"
}

pin() {
    grep "^$1==" constraints.txt
}

# What installs the rest.
uv --version | sed 's/^uv \([^ ]*\).*/uv==\1/' > "$work/uv.in"
compile --universal --python-version 3.11 --generate-hashes -o docker/requirements-uv.txt "$work/uv.in"

# setuptools builds gpumatch itself.
pin setuptools > "$work/build.in"

# For Python 3.11, which `make container-check` may run on; for 3.12, that of the images, the packages are the same.
echo "$(pin torch)+cpu" > "$work/cpu.in"
backend=
[ -n "${UV_FIND_LINKS:-}" ] || backend=--torch-backend=cpu
# shellcheck disable=SC2086  # no backend is no word
compile $backend --python-version 3.11 --python-platform x86_64-manylinux_2_28 -c constraints.txt \
    --generate-hashes -o docker/requirements-cpu.txt pyproject.toml "$work/build.in" "$work/cpu.in"

# torch asks for one Triton, and of NVIDIA's libraries for one set. FAISS asks for another set of the same CUDA minor, and
# no set satisfies both: so torch's and CuPy's packages are chosen first, and FAISS gets them.
grep -v '^triton==' constraints.txt > "$work/constraints.txt"
compile_for_gpu() {
    UV_FIND_LINKS='' compile --python-version 3.12 --python-platform x86_64-manylinux_2_40 \
        -c "$work/constraints.txt" "$@"
}
echo 'cupy-cuda13x[ctk]' > "$work/cupy.in"
compile_for_gpu --extra cupy -o "$work/chosen.txt" pyproject.toml "$work/build.in" "$work/cupy.in"
echo 'faiss-gpu-cu13-cuvs' > "$work/faiss.in"
compile_for_gpu --override "$work/chosen.txt" --generate-hashes \
    -o docker/requirements-gpu.txt "$work/chosen.txt" "$work/faiss.in"

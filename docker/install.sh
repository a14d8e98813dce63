#!/bin/sh
# Installs gpumatch into a virtual environment from packages whose hashes are written down. The images are made by this
# script, and `make container-check` runs it where there is no container engine.
#
#   docker/install.sh TARGET {cpu|gpu} [dependencies|project]     without the last word, both
#
# PYTHON        the interpreter that makes the environment; python3 without it
# TORCH_INDEX   cpu: the address of PyTorch's index of CPU builds, where the default index has none
# uv's own settings hold too: UV_DEFAULT_INDEX, UV_FIND_LINKS, UV_COMPILE_BYTECODE, UV_CACHE_DIR, …
set -eu

fail() {
    echo "docker/install.sh: $*" >&2
    exit 1
}

usage="usage: docker/install.sh TARGET {cpu|gpu} [dependencies|project]"
[ $# -ge 2 ] && [ $# -le 3 ] || fail "$usage"
target=$1 variant=$2 part=${3:-both}
case $variant in cpu | gpu) ;; *) fail "$usage" ;; esac
case $part in both | dependencies | project) ;; *) fail "$usage" ;; esac

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-python3}
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

# uv, of a locked version, in an environment that goes away: it unpacks and compiles what pip takes minutes for.
"$python" -m venv "$tools"
"$tools/bin/python" -m pip --disable-pip-version-check --quiet install --no-cache-dir --no-deps \
    --require-hashes --only-binary :all: -r "$root/docker/requirements-uv.txt"

install() {
    "$tools/bin/uv" --quiet --no-progress pip install --python "$target/bin/python" --no-deps "$@"
}

install_dependencies() {
    [ ! -e "$target" ] || fail "$target is there already"
    "$python" -m venv --without-pip "$target"
    # Only wheels: building from a source archive would fetch tools that are not locked.
    set -- --require-hashes --only-binary :all: -r "$root/docker/requirements-$variant.txt"
    if [ "$variant" = cpu ] && [ -n "${TORCH_INDEX:-}" ]; then
        # A file of another index counts too: the hashes say whether it is the right one.
        set -- --index "$TORCH_INDEX" --index-strategy unsafe-best-match "$@"
    fi
    install "$@" || fail "the packages could not be installed; where torch+cpu is missing, set TORCH_INDEX (docs/CONTAINER.md)"
}

install_project() {
    # An archive made without links builds a wheel that lacks both folders, and nothing else says so.
    for name in kernels cache; do
        [ -f "$root/gpumatch/$name/__init__.py" ] || fail "gpumatch/$name is no link: clone with git, not from a zip"
    done
    # By the setuptools that is locked, without asking an index for another. Compiled after that, since uv would go
    # through all packages.
    (
        export UV_COMPILE_BYTECODE=0
        install --no-build-isolation --offline "$root"
    )
    "$target/bin/python" -P -c 'import compileall, sysconfig
compileall.compile_dir(sysconfig.get_path("purelib") + "/gpumatch", quiet=1)'
    # FAISS for a GPU asks for libraries of CUDA 13.0.0 and gets torch's, a patch later: docs/CONTAINER.md.
    [ "$variant" = gpu ] || "$tools/bin/uv" pip check --python "$target/bin/python" \
        || fail "docker/requirements-$variant.txt is not complete: run docker/lock.sh"
}

[ "$part" = project ] || install_dependencies
[ "$part" = dependencies ] || install_project

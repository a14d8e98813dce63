#!/bin/sh
# Proves the CPU image's contents without a container engine: what the Dockerfile copies is laid into an empty folder,
# installed from there by the script that the image is made by, and the image's commands are run with that alone.
#
# PYTHON        the interpreter to install for; python3 without it
# TORCH_INDEX   as for docker/install.sh
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A folder of wheels that pip looks into, by its environment or its configuration, is one for uv too.
pip_looks_into=${PIP_FIND_LINKS:-$("${PYTHON:-python3}" -m pip config get global.find-links 2>/dev/null || true)}
UV_FIND_LINKS=${UV_FIND_LINKS:-$pip_looks_into}
export UV_FIND_LINKS

# Copied with their links as links, as COPY does; the last word of a COPY is where to.
sed -n 's|^COPY \([^-].*\) /src/\(.*\)$|./\2 \1|p' Dockerfile | while read -r to from; do
    mkdir -p "$work/src/$to"
    # shellcheck disable=SC2086  # several words are several files
    if [ -d "$from" ]; then cp -R "$from/." "$work/src/$to"; else cp $from "$work/src/$to"; fi
done
PYTHONSAFEPATH=1 sh "$work/src/docker/install.sh" "$work/venv" cpu
GPUMATCH_IMAGE_VENV="$work/venv" .venv/bin/python -m pytest tests/test_container.py -k image_command "$@"

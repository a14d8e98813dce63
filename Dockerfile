# gpumatch in a container.
#   docker build -t gpumatch .                          CPU
#   docker build -t gpumatch --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 .    GPU: run with --gpus all
#   docker run --rm -v "$PWD/lake:/lake" -v gpumatch:/cache gpumatch match /lake --task join
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# A CUDA base brings no Python; the Python base has it already.
RUN command -v python3 >/dev/null && python3 -c 'import venv, ensurepip' 2>/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)

# kernels/ and cache/ are what the links in gpumatch/ point to: all three folders are needed.
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY gpumatch gpumatch
COPY kernels kernels
COPY cache cache
RUN test -f gpumatch/kernels/__init__.py && test -f gpumatch/cache/__init__.py \
    && python3 -m venv /opt/gpumatch \
    && /opt/gpumatch/bin/pip install --no-cache-dir -c constraints.txt . \
    && rm -rf /src

RUN useradd --create-home --uid 10001 gpumatch && mkdir /cache && chown gpumatch /cache
USER gpumatch
WORKDIR /home/gpumatch
# The default encoder's weights are inside: no network is needed, and none is asked for.
# Compiled loops are kept with the vectors, for the processor they were compiled on.
ENV PATH=/opt/gpumatch/bin:$PATH GPUMATCH_CACHE_DIR=/cache NUMBA_CACHE_DIR=/cache/numba HF_HUB_OFFLINE=1 PYTHONSAFEPATH=1
VOLUME /cache
ENTRYPOINT ["gpumatch"]
CMD ["--help"]

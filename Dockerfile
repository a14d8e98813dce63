# gpumatch in a container; docs/CONTAINER.md tells more.
#   docker build -t gpumatch .                                    for a GPU: the last stage, what a build without --target gives
#   docker build -t gpumatch:cpu --target cpu --build-arg TORCH_INDEX=… .       without one
#   docker run --rm --gpus all -v "$PWD/lake:/lake:ro" -v gpumatch-cache:/cache gpumatch match /lake --task join

# Debian 13: FAISS's wheel wants glibc 2.39 and Python 3.12. No CUDA image: the wheels bring CUDA's libraries, and the
# NVIDIA container toolkit the driver's.
ARG BASE=python:3.12.15-slim-trixie@sha256:a6e34c598f2467ed0e9a8d349809fcd8b5c603269512df273a0bb1784edc11b1

# --- packages: gigabytes, and made anew only where a locked file changes

FROM ${BASE} AS packages-cpu
ARG TORCH_INDEX
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
COPY docker/install.sh docker/requirements-uv.txt docker/requirements-cpu.txt /src/docker/
RUN --mount=type=cache,target=/root/.cache /src/docker/install.sh /opt/gpumatch cpu dependencies

FROM ${BASE} AS packages-gpu
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
COPY docker/install.sh docker/requirements-uv.txt docker/requirements-gpu.txt /src/docker/
RUN --mount=type=cache,target=/root/.cache /src/docker/install.sh /opt/gpumatch gpu dependencies

# --- gpumatch's own files

FROM scratch AS source
COPY pyproject.toml README.md LICENSE /src/
COPY docker/install.sh docker/requirements-uv.txt /src/docker/
# kernels/ and cache/ are what the links in gpumatch/ point to: all three folders are needed.
COPY gpumatch /src/gpumatch
COPY kernels /src/kernels
COPY cache /src/cache

# --- what both images have

FROM ${BASE} AS runtime
LABEL org.opencontainers.image.title="gpumatch" \
    org.opencontainers.image.description="Find, in a lake of tables, the tables that each query table can be joined or unioned with" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="docker.io/library/python:3.12.15-slim-trixie"
# 0700: gpumatch says so where others can read what tells of the user's texts. A new named volume starts as this folder.
RUN useradd --uid 10001 --user-group --create-home gpumatch \
    && install -d -m 0700 -o gpumatch -g gpumatch /cache
# Whatever is computed once is kept in /cache: vectors and indexes, loops and kernels compiled for this machine.
# The default encoder's weights are a package of the image: no network is needed, and none is asked for.
ENV PATH=/opt/gpumatch/bin:$PATH \
    PYTHONSAFEPATH=1 \
    HF_HUB_OFFLINE=1 \
    GPUMATCH_CACHE_DIR=/cache \
    NUMBA_CACHE_DIR=/cache/numba \
    TRITON_CACHE_DIR=/cache/triton \
    CUPY_CACHE_DIR=/cache/cupy \
    CUDA_CACHE_PATH=/cache/cuda
VOLUME /cache
WORKDIR /home/gpumatch
# Rarely, since it loads torch; without the encoder, which takes half a gigabyte beside a run's own.
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s --retries=2 CMD ["gpumatch", "doctor", "--quick"]
ENTRYPOINT ["gpumatch"]
CMD ["--help"]

# --- the images: packages are one layer and gpumatch another, so that a release moves megabytes

FROM runtime AS cpu
COPY --from=packages-cpu /opt/gpumatch /opt/gpumatch
RUN --mount=type=cache,target=/root/.cache --mount=type=bind,from=source,source=/src,target=/src,rw \
    /src/docker/install.sh /opt/gpumatch cpu project
USER 10001:10001

FROM runtime AS gpu
# Triton compiles its launchers with a C compiler at run time; Python's headers are in the base, CUDA's in Triton.
# No versions: Debian keeps only the newest of a release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=packages-gpu /opt/gpumatch /opt/gpumatch
RUN --mount=type=cache,target=/root/.cache --mount=type=bind,from=source,source=/src,target=/src,rw \
    /src/docker/install.sh /opt/gpumatch gpu project
# What the NVIDIA container toolkit mounts: CUDA, and nvidia-smi for gpumatch doctor.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001

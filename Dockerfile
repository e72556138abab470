# docker build --target cuda -t taet .          # also runs without a GPU
# docker build --target cpu -t taet:cpu --build-arg TORCH_INDEX=URL .    # smaller: URL of PyTorch's CPU builds
# docker run --rm -v "$PWD:/work" taet train taet --data folder:./lesions
#
# Packages are those of requirements.lock, each refused unless its SHA-256 is there. The tag of the base image names one
# version of Python and of Debian; to pin its bytes as well: --build-arg BASE=python@sha256:DIGEST.
ARG BASE=python:3.11.13-slim-bookworm

FROM ${BASE} AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
COPY requirements.lock ./

FROM base AS wheel
RUN awk '/^[A-Za-z]/ {keep = /^(packaging|setuptools)==/} keep' requirements.lock > tools.lock && \
    pip install --require-hashes -r tools.lock
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

# CUDA comes with PyTorch's packages; the machine needs the driver and NVIDIA's container toolkit.
FROM base AS cuda
RUN pip install --require-hashes -r requirements.lock
COPY --from=wheel /dist /dist
RUN pip install --no-deps /dist/*.whl && useradd --create-home taet
USER taet
WORKDIR /work
ENTRYPOINT ["taet"]

# The same versions of torch and torchvision, from an index without CUDA; these two files are not in requirements.lock.
FROM base AS cpu
ARG TORCH_INDEX
RUN awk '/^[A-Za-z]/ {keep = !/^(cuda-|nvidia-|torch==|torchvision==|triton==)/} keep' requirements.lock > cpu.lock && \
    pip install --require-hashes -r cpu.lock && \
    PIP_INDEX_URL="${TORCH_INDEX:?the index of the CPU builds of PyTorch}" pip install --no-deps \
    $(grep -oE '^(torch|torchvision)==[^ ;]+' requirements.lock)
COPY --from=wheel /dist /dist
RUN pip install --no-deps /dist/*.whl && useradd --create-home taet
USER taet
WORKDIR /work
ENTRYPOINT ["taet"]

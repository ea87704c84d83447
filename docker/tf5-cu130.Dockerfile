# Generated from envs/matrix.toml and the row's lock by `nox -s lock`; do not edit.
#
# Row tf5-cu130, Linux x86_64.
# The newest transformers for hosts with the long-lived driver branch 580, whose own CUDA is 13.0:
# the newest torch (CUDA 13.2) runs there only within minor-version compatibility.
#
#   docker build -f docker/tf5-cu130.Dockerfile -t zo2:tf5-cu130 .
#   docker run --rm --gpus all zo2:tf5-cu130
#
# The base has no CUDA in it, because torch's wheels bring the CUDA libraries that they were tested
# with; those of a CUDA base image would lie beside them unused, gigabytes of them. The driver is
# the host's. NVIDIA's forward-compatibility libraries are not in the image: most GPUs refuse them,
# and `zo2-verify` says which driver is needed.
#
# The base is named by its digest, because a tag moves. To build on another one, such as a copy in a
# registry of your own: --build-arg BASE=NAME
ARG BASE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# ---- the packages: a layer that changes with the lock only
FROM ${BASE} AS packages
ENV PIP_CACHE_DIR=/var/cache/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/zo2
COPY lockfiles/tf5-cu130-py311.txt /build/lock.txt
# Settings for pip (another index, its certificate, a password) are a secret of the build, which no
# layer keeps: --secret id=pip.conf,src=FILE. Files in docker/wheelhouse are taken before those of
# an index, and alone with --build-arg NO_INDEX=1.
ARG NO_INDEX=
RUN --mount=type=cache,target=/var/cache/pip \
    --mount=type=bind,source=docker/wheelhouse,target=/wheelhouse \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/zo2/bin/pip install ${NO_INDEX:+--no-index} --find-links /wheelhouse \
        --require-hashes --no-deps --only-binary :all: --no-compile -r /build/lock.txt
# Bytecode with the hash of its source, not the time: the same in every build, and a read-only
# container cannot write it later. Forced, because venv has compiled pip with the time. Some
# packages carry files that are no Python of this version.
RUN python -m compileall -fq -j 0 --invalidation-mode checked-hash /opt/zo2/lib > /dev/null || true

# ---- zo2 itself, aside, so that a change of it is a small layer
FROM packages AS source
WORKDIR /build
COPY pyproject.toml README.md ./
COPY zo2 zo2
COPY verify verify
RUN /opt/zo2/bin/pip install --prefix /zo2 --no-index --no-deps --no-build-isolation \
        --no-compile --no-warn-script-location . \
    && python -m compileall -q --invalidation-mode checked-hash -s /zo2 -p /opt/zo2 /zo2/lib

# ---- what a base lacks
FROM ${BASE} AS runtime
# Triton compiles the launchers of its kernels at run time: a C compiler and libc's headers, without
# what Debian only recommends beside them, and without link-time optimisation, a third of the size.
# For a build without a network, make this stage before (--target runtime) and name it as BASE: what
# has all of it is left as it is.
# hadolint ignore=DL3008
RUN command -v gcc && command -v tini && test -e /usr/include/stdio.h \
    || { apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
        /usr/lib/gcc/*/*/lto1 /usr/bin/*-lto-dump-*; }

# ---- what runs
FROM runtime
COPY --from=packages /opt/zo2 /opt/zo2
COPY --from=source /zo2 /opt/zo2
# Any user may write to these two, because `docker run --user` brings users that no image knows.
# The user is written by hand, because useradd writes down the day as well.
RUN echo 'user:x:1000:1000::/cache:/bin/sh' >> /etc/passwd \
    && echo 'user:x:1000:' >> /etc/group \
    && install --directory --mode 1777 /cache /data

# Everything that keeps something keeps it under /cache: mount a volume there to have it next time.
ENV PATH=/opt/zo2/bin:$PATH \
    VIRTUAL_ENV=/opt/zo2 \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    NUMBA_CACHE_DIR=/cache/numba \
    USER=user \
    container=oci \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG BASE
ARG REVISION=unknown
LABEL org.opencontainers.image.title="zo2" \
    org.opencontainers.image.description="zo2 with the tested versions of row tf5-cu130" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${BASE}" \
    zo2.row="tf5-cu130" \
    zo2.lock="sha256:be29bd99955c8ce486e73b7d5459be5531ecd274b1588271b3f6a400086d01a0" \
    zo2.python="3.11" \
    zo2.torch="2.14.1" \
    zo2.transformers="5.24.0" \
    zo2.cuda="13.0" \
    zo2.driver="580.65.06" \
    zo2.driver-minimum="580.65.06"
USER 1000:1000
WORKDIR /data
HEALTHCHECK --interval=5m --timeout=1m --start-period=1m --retries=2 \
    CMD ["zo2-verify", "--quick", "--quiet", "--row", "tf5-cu130"]
ENTRYPOINT ["tini", "--"]
CMD ["zo2-verify", "--row", "tf5-cu130"]

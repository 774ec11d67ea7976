# The one image: every stage, every Ray node, the tools. CPU or CUDA by the torch that pip finds.
#
#   make image                     # with docker or buildah
#   make image VARIANT=cuda
#
# Nothing is installed that requirements.lock does not pin. PyPI's torch is a CUDA build:
# PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS say where the CPU build is (docs/image.md).
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG VARIANT=cpu
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=1
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY terrafine/__init__.py terrafine/
# first what terrafine needs, which seldom changes; a wheel of nothing but its version asks for it
RUN python3 -m venv /opt/build \
    && python3 -m venv --without-pip /opt/terrafine \
    && /opt/build/bin/pip install --constraint requirements.lock setuptools cyclonedx-bom \
    && /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheels . \
    && /opt/build/bin/pip --python /opt/terrafine/bin/python install \
        --constraint requirements.lock /tmp/wheels/*.whl \
    && /opt/terrafine/bin/python -c "import sys, torch; found = 'cuda' if torch.version.cuda else 'cpu'; \
sys.exit(found != '${VARIANT}' and f'VARIANT=${VARIANT}, but pip found a {found} build of torch: \
name another PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS (docs/image.md)')"
COPY terrafine terrafine
COPY components components
COPY pipelines pipelines
COPY serving serving
COPY k8s k8s
RUN rm -rf /tmp/wheels build \
    && /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheels . \
    && /opt/build/bin/pip --python /opt/terrafine/bin/python install \
        --no-deps --force-reinstall /tmp/wheels/*.whl \
    && /opt/build/bin/cyclonedx-py environment /opt/terrafine/bin/python \
        --output-format JSON --output-file /opt/terrafine/sbom.json

FROM ${BASE}
ARG VARIANT=cpu
ARG VERSION=unknown
ARG REVISION=unknown
# OpenCV links to libGL and glib; tini hands on signals and buries Ray's orphans
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends libgl1 libglib2.0-0 libxcb1 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /tmp/* \
    && groupadd --gid 10001 terrafine \
    && useradd --uid 10001 --gid 10001 --home-dir /work --no-create-home terrafine \
    && install -d -o terrafine -g terrafine /work
COPY --from=build /opt/terrafine /opt/terrafine
# a login shell forgets PATH
RUN ln -s /opt/terrafine/bin/ray /opt/terrafine/bin/terrafine /usr/local/bin/
# the root may be read-only: whoever needs to write has /work and /tmp
ENV PATH=/opt/terrafine/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /work
LABEL org.opencontainers.image.title="terrafine" \
    org.opencontainers.image.description="Fine national land-cover maps from coarse products (${VARIANT})" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["tini", "--", "terrafine"]
CMD ["--help"]

# One file, four images: agent, learner, sim and bridge (the robot's side, without an ML stack).
#   docker build --target agent -t perennial-agent .
#   docker build --target agent --build-arg ACCELERATOR=cuda -t perennial-agent:cuda .
# Versions come from constraints.txt. Code comes last, so that a change of it rebuilds in seconds.
ARG PYTHON_VERSION=3.11
FROM python:${PYTHON_VERSION}-slim-bookworm AS base
# A user without rights, and the folders that belong to it. HOME is a tmpfs at run time.
RUN groupadd --gid 10001 perennial \
    && useradd --uid 10001 --gid perennial --home-dir /tmp --no-create-home \
      --shell /usr/sbin/nologin perennial \
    && install -d -o perennial -g perennial -m 0750 /var/lib/perennial \
      /var/lib/perennial/config /var/lib/perennial/agent /var/lib/perennial/adapters \
      /var/lib/perennial/learner /var/lib/perennial/sim \
    && install -d -o perennial -g perennial -m 0700 /run/perennial-operator /etc/perennial /etc/perennial/keys \
      /etc/perennial/keys/agent /etc/perennial/keys/learner /etc/perennial/keys/operator \
      /etc/perennial/keys/sim
ENV PATH=/opt/perennial/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    XDG_RUNTIME_DIR=/run/perennial

# ---- packages of every image ---------------------------------------------------------------------
FROM base AS packages-bridge
# A folder or page with wheels, for builders behind a mirror; empty: the public index alone.
ARG PIP_FIND_LINKS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv /opt/builder && python3 -m venv --without-pip /opt/perennial
COPY constraints.txt pyproject.toml deploy/containers/requirements.py ./
RUN python3 requirements.py > packages.txt \
    && /opt/builder/bin/pip --python /opt/perennial/bin/python install \
      -c constraints.txt -r packages.txt

# ---- our code: one wheel, unpacked where every image finds it ------------------------------------
FROM packages-bridge AS code
ARG PIP_FIND_LINKS=""
RUN /opt/builder/bin/pip install -c constraints.txt setuptools
COPY README.md LICENSE ./
COPY configs configs
COPY sim_bridge sim_bridge
COPY deploy deploy
COPY agent agent
COPY learner learner
RUN /opt/builder/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
    && /opt/builder/bin/pip --python /opt/perennial/bin/python install --no-deps --no-index \
      --target /code /wheel/*.whl \
    && mv /code/bin /code-bin

# ---- bridge: the robot's side --------------------------------------------------------------------
FROM base AS bridge
ARG PYTHON_VERSION
ARG REVISION=unknown
LABEL org.opencontainers.image.title="perennial-bridge" \
      org.opencontainers.image.description="Perennial's robot side: a client without an ML stack" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=packages-bridge /opt/perennial /opt/perennial
COPY --from=code /code /opt/perennial/lib/python${PYTHON_VERSION}/site-packages
COPY --from=code /code-bin /opt/perennial/bin
USER 10001:10001
WORKDIR /var/lib/perennial
ENTRYPOINT ["perennial"]
CMD ["--help"]

# ---- sim: a simulator worker ---------------------------------------------------------------------
FROM packages-bridge AS packages-sim
ARG PIP_FIND_LINKS=""
RUN python3 requirements.py tabletop > packages.txt \
    && /opt/builder/bin/pip --python /opt/perennial/bin/python install \
      -c constraints.txt -r packages.txt

FROM base AS sim
ARG PYTHON_VERSION
ARG REVISION=unknown
LABEL org.opencontainers.image.title="perennial-sim" \
      org.opencontainers.image.description="Perennial's simulator worker" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
# MuJoCo renders off screen: EGL where a GPU is, OSMesa everywhere. The release fixes the versions
# (constraints.txt); LIBERO needs MuJoCo 3.3.2.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libosmesa6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=packages-sim /opt/perennial /opt/perennial
COPY --from=code /code /opt/perennial/lib/python${PYTHON_VERSION}/site-packages
COPY --from=code /code-bin /opt/perennial/bin
USER 10001:10001
WORKDIR /var/lib/perennial
# The worker has no HTTP port: it notes when the agent last answered it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-m", "sim_bridge.heartbeat", "/run/perennial/heartbeat", "--max-age-s", "30"]
ENTRYPOINT ["perennial"]
CMD ["sim", "--config", "config/sim.yaml"]

# ---- learner and agent: the model's packages -----------------------------------------------------
FROM packages-bridge AS packages-model
ARG PIP_FIND_LINKS=""
# cpu takes PyTorch's small CPU build, cuda the one on PyPI with the CUDA libraries (gigabytes).
ARG ACCELERATOR=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
RUN set -- -c constraints.txt torch; \
    case "$ACCELERATOR" in \
      cpu) [ -n "$PIP_FIND_LINKS" ] || set -- --index-url "$TORCH_CPU_INDEX" "$@" ;; \
      cuda) ;; \
      *) echo "ACCELERATOR: expected cpu or cuda, got '$ACCELERATOR'" >&2; exit 1 ;; \
    esac; \
    /opt/builder/bin/pip --python /opt/perennial/bin/python install "$@"
RUN python3 requirements.py server report > packages.txt \
    && /opt/builder/bin/pip --python /opt/perennial/bin/python install \
      -c constraints.txt -r packages.txt

FROM base AS model
ARG PYTHON_VERSION
COPY --from=packages-model /opt/perennial /opt/perennial
COPY --from=code /code /opt/perennial/lib/python${PYTHON_VERSION}/site-packages
COPY --from=code /code-bin /opt/perennial/bin
USER 10001:10001
WORKDIR /var/lib/perennial
ENTRYPOINT ["perennial"]

FROM model AS learner
ARG REVISION=unknown
LABEL org.opencontainers.image.title="perennial-learner" \
      org.opencontainers.image.description="Perennial's learner: LoRA updates from episodes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-m", "deploy.containers.health", "http://127.0.0.1:9101/readyz"]
CMD ["learn", "--config", "config/learner.yaml"]

FROM model AS agent
ARG REVISION=unknown
LABEL org.opencontainers.image.title="perennial-agent" \
      org.opencontainers.image.description="Perennial's policy server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
EXPOSE 5555 9100
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-m", "deploy.containers.health", "http://127.0.0.1:9100/readyz"]
CMD ["serve", "--config", "config/agent.yaml"]

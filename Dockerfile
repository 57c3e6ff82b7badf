ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
# Address of a package index with another build of torch, for example one without CUDA. Where it
# is empty, torch comes from where everything else does.
ARG TORCH_INDEX=""
# Anything: with what the GPU engine needs. Its torch is one with CUDA, as the package index has it.
ARG GPU=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# For the CPU engine; what else its build needs comes from the package index.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/bitpress
ENV PATH=/opt/bitpress/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# Without its dependencies, which that index need not have: they come with the next step.
RUN if [ -n "$TORCH_INDEX" ]; then \
        PIP_INDEX_URL="$TORCH_INDEX" pip install -c constraints.txt --no-deps torch; \
    fi
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY store store
COPY models models
COPY worker worker
COPY app app
COPY client client
# The variables pin the tools of the build, which -c does not reach.
RUN PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
    pip install -c constraints.txt ".${GPU:+[gpu]}"

FROM python:${PYTHON_VERSION}-slim
# Triton compiles a launcher for each of its kernels where it first runs.
ARG GPU=""
RUN if [ -n "$GPU" ]; then \
        apt-get update \
        && apt-get install -y --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin bitpress \
    && install -d -o bitpress -g bitpress /data
COPY --from=build /opt/bitpress /opt/bitpress
ENV PATH=/opt/bitpress/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BITPRESS_DATA_DIR=/data \
    BITPRESS_CACHE_DIR=/data/cache \
    TRITON_CACHE_DIR=/data/cache/triton \
    BITPRESS_HOST=0.0.0.0 \
    BITPRESS_PORT=8000
USER bitpress
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["bitpress"]
CMD ["up"]

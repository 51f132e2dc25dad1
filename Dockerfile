# The image of every Pixtrawl process: `pixtrawl migrate`, `scheduler`, `worker`, and Flower.
# Every package is the one that requirements.txt names by version and hash; nothing is compiled.

FROM python:3.13.11-slim-bookworm AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1

# The project's own wheel, built by the hatchling that the hash-pinned developers' file names.
FROM base AS wheel
WORKDIR /source
COPY requirements-dev.txt ./
RUN pip install --require-hashes --requirement requirements-dev.txt
COPY pyproject.toml README.md LICENSE ./
COPY alembic ./alembic
COPY models ./models
COPY scheduler ./scheduler
COPY worker ./worker
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# What runs: the pinned packages and the wheel, in one folder.
FROM base AS environment
RUN python -m venv --without-pip /opt/pixtrawl
COPY requirements.txt ./
RUN pip --python /opt/pixtrawl/bin/python install --require-hashes --only-binary :all: \
        --requirement requirements.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /opt/pixtrawl/bin/python install --no-deps --no-index /wheels/*.whl

FROM python:3.13.11-slim-bookworm
# A new volume takes its owner from the folder that it is mounted on.
RUN useradd --system --uid 10001 --user-group --create-home pixtrawl \
    && install --directory --owner pixtrawl --group pixtrawl --mode 0750 /store
COPY --from=environment /opt/pixtrawl /opt/pixtrawl
ENV PATH=/opt/pixtrawl/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER pixtrawl
WORKDIR /home/pixtrawl
CMD ["pixtrawl", "--help"]

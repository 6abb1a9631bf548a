# metabatch, CPU build. docker build -t metabatch .
ARG BASE=python:3.12-slim
FROM ${BASE} AS build
COPY requirements.lock /tmp/requirements.lock
RUN python -m venv /opt/venv \
 && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/requirements.lock \
 && /opt/venv/bin/python -m pip uninstall --yes pip \
 && find /opt/venv -type d -name tests -prune -exec rm -rf {} +

FROM ${BASE}
# xgboost needs OpenMP; it is not in the slim image.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
COPY bin /opt/metabatch/bin
COPY jobs /opt/metabatch/jobs
COPY metabatch /opt/metabatch/metabatch
COPY examples /opt/metabatch/examples
COPY LICENSE README.md requirements.lock /opt/metabatch/
# bin/_run uses the interpreter named here instead of making an environment; nothing is written at run time.
RUN echo /opt/venv/bin/python > /opt/metabatch/.image-python \
 && /opt/venv/bin/python -m compileall -q /opt/metabatch/metabatch \
 && useradd --create-home --uid 1000 metabatch
ENV PATH=/opt/metabatch/bin:$PATH MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1
USER metabatch
WORKDIR /data
CMD ["run-all", "--help"]

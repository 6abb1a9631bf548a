# metabatch. docker build -t metabatch .
#   --build-arg DEVICE=gpu   the CUDA build of XGBoost instead of the CPU one
#   --build-arg BASE=…       another Debian image with Python 3.12, or this one by its digest
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE} AS build
ARG DEVICE=cpu
COPY requirements-distributed.lock requirements-gpu.lock /tmp/
RUN python -m venv /opt/venv \
 && pip() { /opt/venv/bin/python -m pip --no-cache-dir --disable-pip-version-check "$@"; } \
 && pip install --require-hashes -r /tmp/requirements-distributed.lock \
 && case $DEVICE in \
      cpu) ;; \
      gpu) pip uninstall --yes xgboost-cpu && pip install --require-hashes --no-deps -r /tmp/requirements-gpu.lock ;; \
      *) echo "DEVICE=$DEVICE: cpu or gpu" >&2; exit 2 ;; \
    esac \
 && pip uninstall --yes pip \
 # Never loaded here: tests, C headers, Arrow's network library.
 && cd /opt/venv/lib/python3.12/site-packages \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && rm -rf pyarrow/include pyarrow/src pyarrow/libarrow_flight* pyarrow/libarrow_python_flight* pyarrow/_flight*

FROM ${BASE}
# xgboost needs OpenMP; it is not in the slim image.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
COPY bin /opt/metabatch/bin
COPY jobs /opt/metabatch/jobs
COPY metabatch /opt/metabatch/metabatch
COPY examples /opt/metabatch/examples
COPY LICENSE README.md requirements.lock /opt/metabatch/
# bin/_run uses the interpreter named here instead of making an environment; nothing is written at run time. The
# executables for a checkout (set-up, tests) are left out: on PATH, `test` would hide the system's.
RUN echo /opt/venv/bin/python > /opt/metabatch/.image-python \
 && rm /opt/metabatch/bin/_setup /opt/metabatch/bin/test \
 && /opt/venv/bin/python -m compileall -q /opt/metabatch/metabatch \
 && useradd --create-home --uid 1000 metabatch \
 && MPLCONFIGDIR=/tmp/build /opt/metabatch/bin/inspect-dataset /opt/metabatch/examples/hg19-demo > /dev/null && rm -rf /tmp/build
# Any user id, no writable home: caches go to /tmp.
ENV PATH=/opt/metabatch/bin:$PATH MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1
USER metabatch
WORKDIR /data
CMD ["run-all", "--help"]

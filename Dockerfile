# lit_align on a machine with CUDA:
#   docker build -t lit-align .
#   docker run --gpus all -v "$PWD:/home/align/work" lit-align fit --config quickstart
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

ENV PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:$PATH
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --create-home --uid 10001 align

WORKDIR /opt/lit_align
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs ./configs
COPY lit_align ./lit_align
RUN pip install --no-cache-dir --constraint constraints.txt .

USER 10001
WORKDIR /home/align/work
ENTRYPOINT ["lit-align"]
CMD ["--help"]

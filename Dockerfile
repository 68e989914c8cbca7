# On a CPU: docker build -t simvq-codec .
#           docker run --rm -v "$PWD:/audio" simvq-codec encode in.wav out.codes     (or decode, info)
# Small:    docker build --target slim -t simvq-codec:slim .       the same commands by ONNX Runtime, without torch
# On CUDA:  docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 -t simvq-codec:cuda .
#           docker run --rm --gpus all -v "$PWD:/audio" simvq-codec:cuda encode in.wav out.codes --device cuda
# Where you are not user 1000: --user "$(id -u)". Training in an image of your own: docker run --shm-size 1g (or --ipc=host): processes that read ahead pass batches through /dev/shm,
#           of which Docker gives 64 MB; or --set data.workers=0.
ARG PYTHON_VERSION=3.11
FROM python:${PYTHON_VERSION}-slim-bookworm AS base

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 codec
WORKDIR /app
COPY constraints.txt requirements-onnx.txt pyproject.toml README.md LICENSE ./
COPY codec ./codec
ENTRYPOINT ["/bin/sh", "-c", "exec \"codec-$0\" \"$@\""]
CMD ["encode", "--help"]

FROM base AS slim

RUN pip install --constraint constraints.txt --requirement requirements-onnx.txt && pip install --no-deps .
USER 1000
WORKDIR /audio

FROM base AS full

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --constraint constraints.txt --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple torch \
    && pip install --constraint constraints.txt .
USER 1000
WORKDIR /audio

# CPU, with the index of CPU builds that PyTorch's install page shows:
#   docker build --build-arg TORCH_INDEX=... -t products .
# NVIDIA GPUs, with a base image that contains CUDA's libraries and Python 3.11 or newer:
#   docker build --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 -t products .
#   docker run --gpus all --shm-size 8g -v "$PWD/my_photos:/photos" -v "$PWD/log:/app/log" products main.py --DATASET_ROOT /photos
# Workers exchange images through shared memory, hence --shm-size.
# The HTTP service (docs/serving.md; compose.yaml): docker build --target serve -t products-serve .
ARG BASE=python:3.12-slim
FROM ${BASE} AS scripts

# Debian and Ubuntu bases may lack Python; the official Python images have their own.
RUN command -v python3 >/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)

WORKDIR /app
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1

# Dependencies first: this layer is reused until requirements.txt changes.
ARG TORCH_INDEX=
COPY requirements.txt .
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"; fi \
    && pip install --no-cache-dir -r requirements.txt

COPY . .
ENTRYPOINT ["python"]
CMD ["main.py", "--help"]

FROM scripts AS serve
RUN pip install --no-cache-dir -r requirements-serve.txt -r requirements-engines.txt \
    && useradd --system --uid 10001 --no-create-home service
# The working directory is read-only: graphs of the engine and other caches are written below /tmp.
ENV HOME=/tmp XDG_CACHE_HOME=/tmp/cache
USER service
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "tools/serve.py", "--SERVE_HOST", "0.0.0.0"]
CMD ["--RESUME_MODEL", "/model/best_model.pth", "--LOG_ROOT", "/tmp/log"]
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

# The default target.
FROM scripts

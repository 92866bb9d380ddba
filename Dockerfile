# A server on processors, with the bundled models; docs/howto/server.md.
FROM python:3.11-slim

# The package index may offer PyTorch with GPU libraries under the same version: name the index of its CPU wheels.
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN useradd --system --no-create-home --shell /usr/sbin/nologin resgen
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN PIP_EXTRA_INDEX_URL="$PIP_EXTRA_INDEX_URL" pip install -c constraints.txt '.[serve,speech]' && rm -rf /build

WORKDIR /
USER resgen
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]

ENTRYPOINT ["resgen", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--model", "fashion-mnist-small", "avatars64", "spoken-digits-small"]

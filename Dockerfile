# An image that serves models over HTTP:
#   docker build -t evle .
#   docker run --rm -p 8000:8000 -v "$PWD/runs:/runs:ro" evle /runs/coco /runs/quickstart/vqa-pretrained
FROM python:3.12-slim

# pip takes torch from the index that it is configured with. For wheels of another index, such as those for the CPU
# alone, build with --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir '.[serve]' && rm -rf /src

RUN useradd --create-home evle
USER evle
WORKDIR /home/evle
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=3)"]
ENTRYPOINT ["evle", "serve", "--host", "0.0.0.0", "--port", "8000"]

# naiad without weights. Mount checkpoints on /models and pass the path of one as the argument:
#   docker build -t naiad .
#   docker run --gpus all -p 127.0.0.1:4242:4242 -v ~/models:/models:ro -v naiad:/data naiad /models/model.safetensors
# --build-arg CUDA=cu126, cu128, cu130 or cpu chooses the build of torch, by the driver and the GPU: see docs/docker.md.
# --build-arg EXTRAS=[scale] adds Ray Serve for several GPUs, and wget, which KubeRay's probes call.
FROM debian:12-slim

ARG CUDA=""
ARG TORCH_INDEX=""
ARG EXTRAS=""

# Triton compiles a C file when it starts, with Python's headers
RUN apt-get update \
 && if [ "$CUDA" = cpu ]; then compiler=; else compiler="gcc libc6-dev python3-dev"; fi \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv $compiler ${EXTRAS:+wget} \
 && rm -rf /var/lib/apt/lists/* \
 && case "$CUDA" in ""|cpu|cu[0-9][0-9][0-9]) ;; *) echo "CUDA is cu126, cu128, cu130 or cpu, not $CUDA" >&2; exit 1 ;; esac

WORKDIR /opt/naiad
COPY constraints.txt ./
# torch first, in its own layer: it is the largest and changes least
RUN index="${TORCH_INDEX:-${CUDA:+https://download.pytorch.org/whl/$CUDA}}" \
 && python3 -m venv venv \
 && venv/bin/pip install --no-cache-dir -c constraints.txt ${index:+--index-url "$index"} torch
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY configs configs
COPY demo demo
COPY pipelines pipelines
COPY server server
RUN venv/bin/pip install --no-cache-dir -c constraints.txt -e ".$EXTRAS" \
 && useradd --system --uid 10001 --home-dir /opt/naiad naiad \
 && mkdir -p /models /data && chown naiad /data \
 && if [ "$CUDA" = cpu ]; then device=cpu; else device=auto; fi \
 && printf '#!/bin/sh\nNAIAD_DEVICE="${NAIAD_DEVICE:-%s}" exec /opt/naiad/venv/bin/naiad serve "$@"\n' "$device" > serve \
 && chmod 755 serve \
 && for program in naiad ray; do if [ -e venv/bin/$program ]; then ln -s /opt/naiad/venv/bin/$program /usr/local/bin/; fi; done

# a container must listen on all addresses, so a token is required; one is generated and printed if none is set
ENV PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 NAIAD_HOST=0.0.0.0 NAIAD_SIGNING_KEY=/data/signing.pem \
    TRITON_CACHE_DIR=/data/triton TORCHINDUCTOR_CACHE_DIR=/data/inductor
USER naiad
VOLUME ["/models", "/data"]
EXPOSE 4242
STOPSIGNAL SIGTERM
# /ready is 503 while the model is loaded, which may take the whole start period; if it cannot be loaded, the server exits
# (Kubernetes sets NAIAD_PORT to a URL for a service of that name, which is no port)
HEALTHCHECK --interval=30s --timeout=5s --start-period=600s \
  CMD ["/opt/naiad/venv/bin/python", "-c", "import os, urllib.request as r; port = os.environ.get('NAIAD_PORT', ''); r.urlopen(f'http://127.0.0.1:{port if port.isdecimal() else 4242}/ready', timeout=4)"]
ENTRYPOINT ["/opt/naiad/serve"]
CMD ["--demo"]

# deeplab_jax for NVIDIA GPUs. CUDA comes from PyPI, as the extra cuda13 or, with --build-arg CUDA=12, as cuda12. The
# host needs NVIDIA's driver and its container toolkit.
FROM python:3.12-slim
ARG CUDA=13
COPY . /src
RUN pip install --no-cache-dir "/src[cuda${CUDA}]" && rm -r /src
# Compiled programs. Mount a folder here to keep them.
ENV JAX_COMPILATION_CACHE_DIR=/cache
VOLUME ["/cache"]
ENTRYPOINT ["deeplab-jax"]
CMD ["--help"]

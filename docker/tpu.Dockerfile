# deeplab_jax for Cloud TPUs. The TPU runtime comes from PyPI.
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir "/src[tpu]" && rm -r /src
# Compiled programs. Mount a folder here to keep them.
ENV JAX_COMPILATION_CACHE_DIR=/cache
VOLUME ["/cache"]
ENTRYPOINT ["deeplab-jax"]
CMD ["--help"]

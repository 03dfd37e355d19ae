# medseg for the CPU. The build needs a network, running the image does not:
#   docker build -t medseg .
#   docker run --rm --network none -v "$PWD/scans:/scans:ro" -v "$PWD/out:/out" --user "$(id -u):$(id -g)" \
#       medseg predict bundles/hippocampus_unet3d_segmentation /scans --out /out
FROM python:3.11-slim

# Index with the CPU builds of torch. Empty means pip's default index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/medseg
COPY constraints.txt ./
# torch is installed first, pinned and alone, so that packages that require "torch" do not install another build. Its
# dependencies follow with the other packages, because that index does not have them.
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-deps -c constraints.txt ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch
COPY pyproject.toml setup.py README.md LICENSE ./
COPY data_manifests ./data_manifests
COPY bundles ./bundles
COPY medseg ./medseg
RUN /opt/venv/bin/pip install -c constraints.txt '.[train,openvino]' \
 && /opt/venv/bin/pip check

# Any user can run the image, because caches are written to /tmp.
RUN useradd --create-home --uid 1000 medseg
USER medseg
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib

ENTRYPOINT ["medseg"]
CMD ["--help"]

#!/usr/bin/env bash
# On the device: everything, the most valuable first; $OUT/result.json grows, whatever happens.
#
#   OUT=FOLDER LIMIT=540 bash tools/gpu_check/run.sh [STAGE ...]
export PYTHONUNBUFFERED=1 PYTORCH_NVML_BASED_CUDA_CHECK=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TRITON_CACHE_DIR=$PWD/.gpu/triton
began=$SECONDS
if [ ! -d .gpu/site/datasets ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target .gpu/site .gpu/a/*.whl
fi
export PYTHONPATH=$PWD:$PWD/.gpu/site
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv > "$OUT/smi.csv"
if [ -f .gpu/b/part.01 ] && [ ! -f .gpu/smollm2/model.safetensors ]; then # on the CPU, meanwhile
  (timeout 120 python3 tools/gpu_check/smol.py > .gpu/smol.log 2>&1 &)
fi
timeout 100 python3 -m pytest -m gpu -q -p no:cacheprovider -n 4 tests > "$OUT/pytest.txt" 2>&1
echo "pytest: $(tail -1 "$OUT/pytest.txt")"
GPU_CHECK_SECONDS=$((${LIMIT:-560} - (SECONDS - began) - 15)) \
  python3 tools/gpu_check/stages.py "$OUT/result.json" "$@" 2> >(tail -c 200000 > "$OUT/errors.txt")

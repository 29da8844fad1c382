#!/usr/bin/env bash
# On the device, in the repository's root: everything, the most valuable first; $OUT/result.json grows, whatever happens.
#
#   OUT=FOLDER LIMIT=540 bash tools/gpu_check/run.sh [STAGE ...]
: "${OUT:?the folder of the results}"
mkdir -p "$OUT" .gpu
export PYTHONUNBUFFERED=1 PYTORCH_NVML_BASED_CUDA_CHECK=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TRITON_CACHE_DIR=$PWD/.gpu/triton GPU_CHECK_COMMIT GPU_CHECK_DRIVER GPU_CHECK_TESTS
began=$SECONDS
if [ ! -d .gpu/site/datasets ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target .gpu/site .gpu/a/*.whl
fi
export PYTHONPATH=$PWD:$PWD/.gpu/site
GPU_CHECK_COMMIT=$(cat .gpu/a/commit 2> /dev/null)
GPU_CHECK_DRIVER=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null | head -1)
if [ -f .gpu/b/part.01 ] && [ ! -f .gpu/smollm2/model.safetensors ]; then # on the CPU, meanwhile
  mkdir -p .gpu/smollm2.part
  (timeout "${SMOL_LIMIT:-120}" python3 tools/gpu_check/smol.py > .gpu/smol.log 2>&1 || rm -r .gpu/smollm2.part) &
fi
# the files alone that have such tests: all others would have to be imported too
timeout -k 5 "${TESTS_LIMIT:-100}" python3 -m pytest -m gpu -v -p no:cacheprovider -n 4 $(grep -rl 'mark\.gpu' tests) > "$OUT/pytest.txt" 2>&1
GPU_CHECK_TESTS=$(tail -1 "$OUT/pytest.txt")
echo "pytest: $GPU_CHECK_TESTS"
GPU_CHECK_SECONDS=$((${LIMIT:-540} - (SECONDS - began) - 15)) \
  python3 tools/gpu_check/stages.py "$OUT/result.json" "$@" 2> "$OUT/errors.txt"
code=$?
cp .gpu/smol.log "$OUT/" 2> /dev/null
tail -c 200000 "$OUT/errors.txt" > .gpu/errors.txt && mv .gpu/errors.txt "$OUT/errors.txt"
exit $code

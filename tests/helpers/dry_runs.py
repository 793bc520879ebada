"""Many dry runs at the price of one import of snakemake, each in a forked process.

Reads a JSON list of [folder, words of the command line], writes a JSON list of what each printed.
"""

import json
import os
import sys
import tempfile

from snakemake.cli import main


def dry_run(folder: str, words: list[str]) -> str:
    with tempfile.TemporaryFile() as stream:
        process = os.fork()
        if process == 0:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            os.chdir(folder)
            main(["-n", *words])  # ends the process
        os.waitpid(process, 0)
        stream.seek(0)
        return stream.read().decode()


if __name__ == "__main__":
    json.dump([dry_run(*request) for request in json.load(sys.stdin)], sys.stdout)

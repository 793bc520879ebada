#!/bin/bash
# Run the calculations of folders.txt beside this script as a SLURM array, one folder a task:
#   cd dft_inputs/SETTING && sbatch --array=1-$(wc -l < folders.txt)%100 job_array.sh
# (in several arrays where the cluster's MaxArraySize is smaller: the first number is the first line).
# A folder with a finished run is passed over, so the same line submits what is left.
# Set the partition, the account and how DFT is called, then `flowllm dft_collect` reads the results.
#SBATCH --job-name=flowllm-dft
#SBATCH --nodes=1
#SBATCH --ntasks=24
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%A_%a.out

set -euo pipefail

: "${VASP_COMMAND:=srun vasp_std}"
: "${GPAW_COMMAND:=srun gpaw python}"
: "${ESPRESSO_COMMAND:=srun pw.x -in pw.in}"

root=$(pwd)
folder=$(sed -n "${SLURM_ARRAY_TASK_ID}p" folders.txt)
cd "$folder"

if [ -f pw.in ]; then
    grep -qs "JOB DONE" pw.out && exit 0
    $ESPRESSO_COMMAND > pw.out
elif [ -f gpaw.json ]; then
    [ -f gpaw_result.json ] && exit 0
    $GPAW_COMMAND "$root/gpaw_static.py" .
else
    # Where custodian's double relaxation left its first leg, the second is the end.
    result=vasprun.xml
    if ls vasprun.xml.relax* > /dev/null 2>&1; then result=vasprun.xml.relax2; fi
    for file in "$result" "$result.gz"; do
        [ -f "$file" ] && zcat -f "$file" | tail -c 64 | grep -q "</modeling>" && exit 0
    done
    if [ ! -f POTCAR ]; then
        echo "$folder has no POTCAR: set PMG_VASP_PSP_DIR for dft_inputs, or make it from POTCAR.spec" >&2
        exit 1
    fi
    # A run that was cut short goes on from its last structure; dft_collect can read what it had.
    if [ -s vasprun.xml ]; then
        number=1
        while [ -e "vasprun.xml.cut$number" ]; do number=$((number + 1)); done
        mv vasprun.xml "vasprun.xml.cut$number"
    fi
    if [ -s CONTCAR ]; then cp CONTCAR POSCAR; fi
    $VASP_COMMAND > vasp.out
fi

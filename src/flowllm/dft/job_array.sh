#!/bin/bash
# Run the calculations of folders.txt beside this script as a SLURM array, one folder a task:
#   cd dft_inputs/SETTING && sbatch --array=1-$(wc -l < folders.txt)%100 job_array.sh
# (in several arrays where the cluster's MaxArraySize is smaller: the first number is the first line).
# A folder with a converged run is passed over, so the same line submits what is left.
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

# Whether a vasprun.xml (on standard input) is of a run that came to its end, by dft_collect's rule:
# VASP closed the file, the electronic loop of the last ionic step ended before NELM, and a relaxation
# ended by VASP's word (first argument: 1 in OUTCAR, 0 not in it, empty without OUTCAR, where EDIFFG
# decides).
converged() {
    LC_ALL=C awk -v word="$1" '
        function text(line) { gsub(/<[^>]*>/, "", line); gsub(/^ +| +$/, "", line); return line }
        function number(line) {
            line = text(line)
            if (line !~ /^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$/) return 1e99  # overflow: asterisks
            return line + 0
        }
        function size(x) { return x < 0 ? -x : x }
        /name="NSW"/ { nsw = number($0); known = 1 }
        /name="IBRION"/ { ibrion = number($0) }
        /name="ISIF"/ { isif = number($0) }
        /name="NELM"/ { nelm = number($0) }
        /name="EDIFF"/ { ediff = number($0) }
        /name="EDIFFG"/ { ediffg = number($0); has_ediffg = 1 }
        /<calculation>/ { inside = 1; loops = atoms = force = stress = 0 }
        /<scstep>/ { loops++ }
        /<varray/ { part = $0; atom = 0 }
        /<\/varray>/ { part = "" }
        /<v / && part ~ /name="selective"/ { held[++atom] = text($0) !~ /T/ }
        /<v>/ && part ~ /name="forces"/ {
            split(text($0), f, " +"); atoms++; norm = 0
            for (i = 1; i <= 3; i++) norm += number(f[i]) ^ 2
            if (!held[atoms] && norm > force) force = norm
        }
        /<v>/ && part ~ /name="stress"/ {
            split(text($0), f, " +")
            for (i = 1; i <= 3; i++) if (size(number(f[i])) > stress) stress = size(number(f[i]))
        }
        /name="volume"/ && inside { volume = number($0) }
        /name="e_fr_energy"/ { energy = number($0) }
        /<\/calculation>/ { inside = 0; steps++; before = last; last = energy }
        { if ($0 !~ /^ *$/) end = $0 }
        END {
            if (end !~ /<\/modeling>/) exit 1
            if (!known) exit 0
            if (nelm > 0 && loops >= nelm) exit 1
            if (nsw <= 0 || ibrion == -1 || (ibrion == 0 && nsw == 1)) exit 0
            if (ibrion < 1 || ibrion > 3 || word == "0") exit 1
            if (word == "1") exit 0
            if (!has_ediffg) ediffg = 10 * ediff
            if (ediffg > 0) exit !(steps > 1 && size(last - before) < ediffg)
            moves = (isif <= 4 || isif == 8) && sqrt(force) > -ediffg
            strained = isif >= 3 && stress * volume / 1602.176634 / atoms > -ediffg
            exit ediffg == 0 || atoms == 0 || moves || strained
        }'
}

unpack() {
    case $1 in
        *.bz2) bzcat "$1" ;;
        *.xz) xzcat "$1" ;;
        *) zcat -f "$1" ;;
    esac
}

# What VASP says of its relaxation, in the OUTCAR of the result whose name ends so.
vasps_word() {
    for file in "OUTCAR$1" "OUTCAR$1".{gz,bz2,xz}; do
        [ -s "$file" ] || continue
        if unpack "$file" | grep -c "reached required accuracy" > /dev/null; then echo 1; else echo 0; fi
        return
    done
}

# Under the next free number, as dft_collect finds what a run had before it was started again.
keep() {
    number=1
    while compgen -G "vasprun.xml.cut$number" > /dev/null ||
        compgen -G "vasprun.xml.cut$number.*" > /dev/null; do
        number=$((number + 1))
    done
    case $1 in
        *.gz | *.bz2 | *.xz) mv "$1" "vasprun.xml.cut$number.${1##*.}" ;;
        *) mv "$1" "vasprun.xml.cut$number" ;;
    esac
}

root=$(pwd)
folder=$(sed -n "${SLURM_ARRAY_TASK_ID}p" folders.txt)
cd "$folder"

if [ -f pw.in ]; then
    grep -qs "JOB DONE" pw.out && exit 0
    $ESPRESSO_COMMAND > pw.out
elif [ -f gpaw.json ]; then
    grep -qs '"converged": true' gpaw_result.json && exit 0
    $GPAW_COMMAND "$root/gpaw_static.py" .
else
    # Where custodian's double relaxation left its first leg, the second is the end.
    leg=""
    if ls vasprun.xml.relax* > /dev/null 2>&1; then leg=.relax2; fi
    for file in "vasprun.xml$leg" "vasprun.xml$leg".{gz,bz2,xz}; do
        if [ -f "$file" ] && unpack "$file" | converged "$(vasps_word "$leg")"; then exit 0; fi
    done
    if [ ! -f POTCAR ]; then
        echo "$folder has no POTCAR: set PMG_VASP_PSP_DIR for dft_inputs, or make it from POTCAR.spec" >&2
        exit 1
    fi
    # A run that did not converge goes on from its last structure; dft_collect can read what it had.
    for file in vasprun.xml.relax1* vasprun.xml.relax2* vasprun.xml vasprun.xml.{gz,bz2,xz}; do
        if [ -s "$file" ]; then keep "$file"; fi
    done
    for file in CONTCAR CONTCAR.relax2; do
        [ -s "$file" ] || continue
        [ -e POSCAR.orig ] || cp POSCAR POSCAR.orig
        cp "$file" POSCAR
        break
    done
    $VASP_COMMAND > vasp.out
fi

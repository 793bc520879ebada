#!/bin/bash
# Run the calculations listed in folders.txt as a SLURM array, one folder per task. Start it in the
# folder of this script:
#   cd dft_inputs/METHOD && sbatch --array=1-$(wc -l < folders.txt)%100 job_array.sh
# The array index plus OFFSET (default 0) is the line in folders.txt. An index must be smaller than
# the cluster's MaxArraySize (`scontrol show config`; by default 1001), so that longer lists need
# several arrays, for example for the lines from 1001 to 2000:
#   OFFSET=1000 sbatch --array=1-1000%100 job_array.sh
# Folders with a converged run are skipped, so the same command runs what is left. Set the
# partition, the account and the command of the DFT code first. dft_inputs does not replace a script
# that was edited.
# `flowllm dft_collect` reads the results.
#SBATCH --job-name=flowllm-dft
#SBATCH --nodes=1
#SBATCH --ntasks=24
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%A_%a.out

set -euo pipefail

: "${VASP_COMMAND:=srun vasp_std}"
: "${GPAW_COMMAND:=srun gpaw python}"
: "${ESPRESSO_COMMAND:=srun pw.x -in pw.in}"

# Succeed if the vasprun.xml on standard input is of a converged run. The rule is dft_collect's:
# VASP closed the file, the electronic loop of the last ionic step ended before NELM steps, and a
# relaxation converged. The first argument decides on the relaxation: 1 where OUTCAR states
# convergence, 0 where it does not. Without OUTCAR the argument is empty, and EDIFFG decides.
converged() {
    LC_ALL=C awk -v outcar="$1" '
        # Content of a line without its tags and the spaces around it.
        function text(line) { gsub(/<[^>]*>/, "", line); gsub(/^ +| +$/, "", line); return line }
        # Number in a line. VASP writes asterisks where a number overflows: 1e99 meets no criterion.
        function number(line) {
            line = text(line)
            if (line !~ /^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$/) return 1e99
            return line + 0
        }
        function abs(x) { return x < 0 ? -x : x }

        # Settings. A file without NSW has no settings to check.
        /name="NSW"/ { nsw = number($0); has_settings = 1 }
        /name="IBRION"/ { ibrion = number($0) }
        /name="ISIF"/ { isif = number($0) }
        /name="NELM"/ { nelm = number($0) }
        /name="EDIFF"/ { ediff = number($0) }
        /name="EDIFFG"/ { ediffg = number($0); has_ediffg = 1 }

        # An ionic step starts. All of the following is overwritten by each step.
        /<calculation>/ { in_step = 1; loops = atoms = force = stress = 0 }
        /<scstep>/ { loops++ }
        /<varray/ { array = $0; row = 0 }
        /<\/varray>/ { array = "" }
        # Selective dynamics: an atom without T is fixed in all three directions.
        /<v / && array ~ /name="selective"/ { fixed[++row] = text($0) !~ /T/ }
        # Square of the largest force on an atom that may move, (eV/angstrom)^2.
        /<v>/ && array ~ /name="forces"/ {
            split(text($0), f, " +"); atoms++; norm = 0
            for (i = 1; i <= 3; i++) norm += number(f[i]) ^ 2
            if (!fixed[atoms] && norm > force) force = norm
        }
        # Largest component of the stress, kbar.
        /<v>/ && array ~ /name="stress"/ {
            split(text($0), s, " +")
            for (i = 1; i <= 3; i++) if (abs(number(s[i])) > stress) stress = abs(number(s[i]))
        }
        /name="volume"/ && in_step { volume = number($0) }
        # The last of these lines in a step is the energy of the step.
        /name="e_fr_energy"/ { energy = number($0) }
        /<\/calculation>/ { in_step = 0; steps++; before = last; last = energy }

        { if ($0 !~ /^ *$/) last_line = $0 }

        END {
            if (last_line !~ /<\/modeling>/) exit 1                     # file not closed by VASP
            if (!has_settings) exit 0
            if (nelm > 0 && loops >= nelm) exit 1                       # electronic loop
            if (nsw <= 0 || ibrion == -1 || (ibrion == 0 && nsw == 1)) exit 0   # static run
            if (ibrion < 1 || ibrion > 3 || outcar == "0") exit 1       # dynamics and others
            if (outcar == "1") exit 0
            if (!has_ediffg) ediffg = 10 * ediff                        # default of VASP
            if (ediffg > 0) exit !(steps > 1 && abs(last - before) < ediffg)
            force_left = (isif <= 4 || isif == 8) && sqrt(force) > -ediffg
            # 1602.176634 kbar angstrom^3 are 1 eV.
            stress_left = isif >= 3 && stress * volume / 1602.176634 / atoms > -ediffg
            exit ediffg == 0 || atoms == 0 || force_left || stress_left
        }'
}

# Print a file, plain or packed, without its compression.
unpack() {
    case $1 in
        *.bz2) bzcat "$1" ;;
        *.xz) xzcat "$1" ;;
        *) zcat -f "$1" ;;
    esac
}

# Print 1 if the OUTCAR with the suffix $1 states convergence, 0 if it does not, and nothing where
# there is no OUTCAR.
outcar_convergence() {
    for file in "OUTCAR$1" "OUTCAR$1".{gz,bz2,xz}; do
        [ -s "$file" ] || continue
        if unpack "$file" | grep -c "reached required accuracy" > /dev/null; then echo 1; else echo 0; fi
        return
    done
}

# Rename a result to vasprun.xml.cutN with the next free number N, under which dft_collect finds it.
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
line=$((SLURM_ARRAY_TASK_ID + ${OFFSET:-0}))
folder=$(sed -n "${line}p" folders.txt)
if [ -z "$folder" ]; then
    echo "folders.txt has no line $line" >&2
    exit 1
fi
cd "$folder"

if [ -f pw.in ]; then
    grep -qs "JOB DONE" pw.out && exit 0
    $ESPRESSO_COMMAND > pw.out
elif [ -f gpaw.json ]; then
    grep -qs '"converged": true' gpaw_result.json && exit 0
    $GPAW_COMMAND "$root/gpaw_static.py" .
else
    # After the first leg of custodian's double relaxation, the result of the second leg counts.
    leg=""
    if ls vasprun.xml.relax* > /dev/null 2>&1; then leg=.relax2; fi
    for file in "vasprun.xml$leg" "vasprun.xml$leg".{gz,bz2,xz}; do
        if [ -f "$file" ] && unpack "$file" | converged "$(outcar_convergence "$leg")"; then exit 0; fi
    done
    if [ ! -f POTCAR ]; then
        echo "$folder has no POTCAR. Set PMG_VASP_PSP_DIR for dft_inputs, or make POTCAR from POTCAR.spec" >&2
        exit 1
    fi
    # A run that did not converge restarts from its last structure. Its results are kept.
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

# shellcheck shell=bash
# Prepares a compute node's shell for one unit; sourced, before the interpreter starts, by a script that hpcq wrote.
#
# Takes, all exported by that script:
#   HPCQ_PACKAGE_PATH  folder that holds the package hpcq and nothing else
#   HPCQ_THREADS       threads for numerical libraries
#   HPCQ_MODULES       environment modules to load, separated by blanks; may be empty
#
# By hand: HPCQ_PACKAGE_PATH=… HPCQ_THREADS=1 HPCQ_MODULES='' . sbatch/prologue.sh

# Clusters' own scripts, and the module function itself, stumble over -e and -u. (Not kept by $(set +o): a command
# substitution is run without -e.)
_hpcq_options=$-
set +eu

_hpcq_find_module() {
    local script
    for script in "${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash" "${MODULESHOME:-/usr/share/modules}/init/bash" \
        /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh /etc/profile.d/modules.sh; do
        type module >/dev/null 2>&1 && return 0
        # shellcheck source=/dev/null
        [ -r "$script" ] && . "$script"
    done
    type module >/dev/null 2>&1
}

_hpcq_load_modules() {
    local name
    [ $# -eq 0 ] && return 0
    if ! _hpcq_find_module; then
        echo "hpcq: the modules $* are wanted, but node $(hostname) has no 'module' command." >&2
        return 1
    fi
    for name in "$@"; do
        if ! module load "$name"; then
            echo "hpcq: 'module load $name' failed on node $(hostname)." >&2
            return 1
        fi
    done
}

umask 077

# What the submitting shell had in its Python settings is not the node's; modules loaded below may add to the path.
unset PYTHONHOME
export PYTHONPATH=$HPCQ_PACKAGE_PATH
export PYTHONNOUSERSITE=1
# Without this, `python -m` puts the working directory first, and with it every folder named like a package.
export PYTHONSAFEPATH=1

export OMP_NUM_THREADS=$HPCQ_THREADS
export MKL_NUM_THREADS=$HPCQ_THREADS

# shellcheck disable=SC2086 # names are checked by hpcq and separated by blanks
_hpcq_load_modules ${HPCQ_MODULES:-}
_hpcq_status=$?
case $_hpcq_options in *e*) set -e ;; esac
case $_hpcq_options in *u*) set -u ;; esac
# As the last command its status is the prologue's: under `set -e` the batch script ends here.
[ "$_hpcq_status" -eq 0 ]

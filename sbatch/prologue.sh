# shellcheck shell=bash
# Prepare a compute node's shell for one unit. Sourced by a script that hpcq wrote, before the interpreter starts.
#
# Input, exported by that script:
#   HPCQ_PACKAGE_PATH  folder that contains only the package hpcq
#   HPCQ_THREADS       threads for numerical libraries
#   HPCQ_MODULES       environment modules to load, separated by spaces; may be empty
#   HPCQ_MODULE_PATH   folder with hpcq's own modulefiles; may be empty
#
# Manually: HPCQ_PACKAGE_PATH=… HPCQ_THREADS=1 HPCQ_MODULES='' . sbatch/prologue.sh

# Clusters' scripts and the module function itself fail under -e and -u. ($(set +o) would not save the options: a command
# substitution runs without -e.)
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
        echo "hpcq: modules $* are required, but node $(hostname) has no 'module' command." >&2
        return 1
    fi
    [ -z "${HPCQ_MODULE_PATH:-}" ] || module use "$HPCQ_MODULE_PATH"
    for name in "$@"; do
        if ! module load "$name"; then
            echo "hpcq: 'module load $name' failed on node $(hostname)." >&2
            return 1
        fi
    done
}

# Lines of setup may set an EXIT trap (`trap 'rm -rf $SCRATCH' EXIT`). It must not replace hpcq's, which requeues the job,
# so hpcq_site_exit keeps its command, and hpcq's traps of EXIT and TERM are set again: after the lines, or before a line
# ends the shell (`mkdir $SCRATCH || exit 1`).
_hpcq_save_traps() {
    _hpcq_traps=$(trap -p EXIT TERM)
    _hpcq_own_exit=$(trap -p EXIT)
    # shellcheck disable=SC2317 # the site's lines call it
    exit() {
        local status=$?
        [ "$BASH_SUBSHELL" -gt 0 ] || _hpcq_restore_traps
        builtin exit "${1-$status}"
    }
}
_hpcq_restore_traps() {
    local found words
    unset -f exit
    hpcq_site_exit=
    found=$(trap -p EXIT)
    if [ "$found" != "$_hpcq_own_exit" ]; then
        eval "words=(${found#trap })" # -- 'command' EXIT, as quoted by bash
        hpcq_site_exit=${words[1]-}
    fi
    trap - EXIT
    eval "$_hpcq_traps"
}

# Run the command of the site's EXIT trap with exit status $1, in a subshell: it cannot change the job's exit status.
_hpcq_run_site_exit() {
    [ -n "${hpcq_site_exit:-}" ] || return 0
    (
        set +eu
        (exit "$1")
        eval "$hpcq_site_exit"
    ) || true
}

# A job that stages creates the files of the cache, which others may read, with the user's umask.
export HPCQ_USER_UMASK=${HPCQ_USER_UMASK:-$(umask)}
umask 077

# Python settings of the submitting shell do not apply to the node. Modules loaded below may extend the path. The first
# job that imports the copy of hpcq compiles it, for all others.
unset PYTHONHOME PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX
export PYTHONPATH=$HPCQ_PACKAGE_PATH
export PYTHONNOUSERSITE=1
# Without this, `python -m` puts the working directory first, with every folder that has the name of a package.
export PYTHONSAFEPATH=1

export OMP_NUM_THREADS=$HPCQ_THREADS
export MKL_NUM_THREADS=$HPCQ_THREADS

# shellcheck disable=SC2086 # hpcq has checked the names, which are separated by spaces
_hpcq_load_modules ${HPCQ_MODULES:-}
_hpcq_status=$?
case $_hpcq_options in *e*) set -e ;; esac
case $_hpcq_options in *u*) set -u ;; esac
# The last command's status is the prologue's: under `set -e` the batch script exits here.
[ "$_hpcq_status" -eq 0 ]

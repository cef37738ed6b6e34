# shellcheck shell=bash
# Has hpcq see to a unit that ended badly: a trap in the batch shell, which outlives its step. Sourced, before the unit's
# environment is entered, by a batch script that hpcq wrote.
#
#   . epilogue.sh WHEN FOLDER PACKAGE PYTHON …
#
#   WHEN     failed: when the shell leaves with anything but 0; always: in any case
#   FOLDER   of the submission, where its order.json lies
#   PACKAGE  folder that holds the package hpcq and nothing else
#   PYTHON   interpreters; the first that is there is taken
_hpcq_when=$1 _hpcq_folder=$2 _hpcq_package=$3
shift 3
_hpcq_pythons=("$@")
# Slurm appends to a log whenever it starts a job again: what stands there now is of earlier times.
_hpcq_said_before=$(stat -Lc %s "/proc/$$/fd/2" 2>/dev/null || echo 0)

_hpcq_aftermath() {
    local status=$? python
    trap - EXIT
    # The job's own end, once it is queued again, begins with SIGTERM: what is left to do takes less than KillWait.
    trap '' TERM
    # 77: sbatch/private.sh does not trust the folders that would be executed now.
    if [ "$status" -eq 77 ] || { [ "$status" -eq 0 ] && [ "$_hpcq_when" = failed ]; }; then
        exit "$status"
    fi
    for python in "${_hpcq_pythons[@]}"; do
        [ -x "$python" ] || continue
        # Leaves with 0 where the unit is done, however its process ended.
        PYTHONPATH=$_hpcq_package PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1 \
            "$python" -m hpcq.batch.epilogue "$_hpcq_folder" "$status" "$_hpcq_said_before" && status=0
        break
    done
    exit "$status"
}
trap _hpcq_aftermath EXIT
# Without this SIGTERM would end the shell before its step: the trap is put off until srun has returned.
trap : TERM

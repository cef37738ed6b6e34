# shellcheck shell=bash
# Run hpcq's epilogue after a unit has failed: an EXIT trap in the batch shell, which outlives its step. Sourced by a batch
# script that hpcq wrote, before the unit's environment.
#
#   . epilogue.sh WHEN FOLDER PACKAGE PYTHON …
#
#   WHEN     failed: if the shell's exit status is not 0; always: in any case
#   FOLDER   folder of the submission, with its submission.json
#   PACKAGE  folder that contains only the package hpcq
#   PYTHON   interpreters; the first that exists is used
_hpcq_when=$1 _hpcq_folder=$2 _hpcq_package=$3
shift 3
_hpcq_pythons=("$@")
# Slurm appends to the log each time it restarts a job: the current content is from earlier starts.
_hpcq_log_size() {
    stat -Lc %s "/proc/$$/fd/2" 2>/dev/null || echo 0
}
_hpcq_log_offset=$(_hpcq_log_size)

_hpcq_epilogue() {
    local status=$?
    trap - EXIT
    # After the requeue, Slurm ends this job with SIGTERM first: what remains takes less than KillWait.
    trap '' TERM
    if _hpcq_end_unit "$status"; then status=0; else status=$?; fi
    # The EXIT trap of the site's own lines, last: it may remove what the unit has used.
    [ -z "${hpcq_site_exit:-}" ] || _hpcq_run_site_exit "$status"
    exit "$status"
}

# Return the exit status of the job, given that of the shell.
_hpcq_end_unit() {
    local status=$1 python
    # What a line of setup has printed is a better reason than this message.
    if [ -n "${hpcq_in_setup:-}" ] && [ "$(_hpcq_log_size)" -eq "$_hpcq_log_offset" ]; then
        echo "hpcq: the setup lines of the cluster profile ended the shell with exit code $status${hpcq_failed_line:+; the last \
that failed: $hpcq_failed_line}" >&2
    fi
    if [ -n "${hpcq_in_setup:-}" ] && [ "$status" -eq 0 ]; then
        status=1
    fi
    # 77: sbatch/private.sh has refused to execute files in these folders.
    if [ "$status" -eq 77 ] || { [ "$status" -eq 0 ] && [ "$_hpcq_when" = failed ]; }; then
        return "$status"
    fi
    for python in "${_hpcq_pythons[@]}"; do
        [ -x "$python" ] || continue
        # Exits with 0 if the unit is done, however its process ended.
        PYTHONPATH=$_hpcq_package PYTHONSAFEPATH=1 PYTHONNOUSERSITE=1 \
            "$python" -m hpcq.batch.epilogue "$_hpcq_folder" "$status" "$_hpcq_log_offset" && status=0
        break
    done
    return "$status"
}
trap _hpcq_epilogue EXIT
# Without this, SIGTERM would end the shell before its step. bash defers the trap until srun has returned.
trap : TERM

#!/usr/bin/env bash
# A controller that is busy when jobs submit or cancel: every second call fails; $HPCQ_TEST_CALLS is the folder that counts
# them. For the PATH of jobs.
name=${0##*/}
PATH=${PATH#*:}
number=$(($(find "$HPCQ_TEST_CALLS" -type f | wc -l) + 1))
: >"$HPCQ_TEST_CALLS/$name.$number.$$"
if [ $((number % 2)) -eq 1 ]; then
    echo "$name: error: Unable to contact slurm controller (connect failure)" >&2
    exit 1
fi
exec "$name" "$@"

#!/usr/bin/env bash
# Run a command in the environment of a unit. The local launcher uses it instead of a batch script.
#
#   enter.sh ENVIRONMENT COMMAND [ARGUMENT …]
#
# ENVIRONMENT is the environment.sh that hpcq wrote to the folder of the unit's record. To debug in a unit's environment:
#   sbatch/enter.sh logs/RUN/submitit/…/environment.sh python
set -euo pipefail
folder=$(cd -- "$(dirname -- "$1")" && pwd)
parent=${folder%/*}
# shellcheck source=SCRIPTDIR/private.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/private.sh"
hpcq_require_private "$folder/${1##*/}" "$folder" "$parent" "${parent%/*}"
# shellcheck source=/dev/null
. "$1"
shift
[ -n "${hpcq_site_exit:-}" ] || exec "$@"
# The site's lines have set an EXIT trap, so this shell must outlive the command.
"$@" <&0 &
command=$!
trap 'forwarded=1; kill -TERM "$command" 2>/dev/null || true' TERM
while
    forwarded='' status=0
    wait "$command" || status=$?
    [ -n "$forwarded" ] # the signal has ended `wait`, not yet the command
do :; done
_hpcq_run_site_exit "$status"
exit "$status"

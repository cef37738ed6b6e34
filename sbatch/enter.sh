#!/usr/bin/env bash
# Runs a command in the environment of a unit: the local launcher's counterpart of a batch script.
#
#   enter.sh ENVIRONMENT COMMAND [ARGUMENT …]
#
# ENVIRONMENT is the environment.sh that hpcq wrote beside the unit's pickle, so a unit's surroundings can be had by hand:
#   sbatch/enter.sh logs/RUN/submitit/…/environment.sh python
set -euo pipefail
folder=$(cd -- "$(dirname -- "$1")" && pwd)
above=${folder%/*}
# shellcheck source=SCRIPTDIR/private.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/private.sh" "$1" "$folder" "$above" "${above%/*}"
# shellcheck source=/dev/null
. "$1"
shift
exec "$@"

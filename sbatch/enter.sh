#!/usr/bin/env bash
# Run a command in the environment of a unit. The local launcher uses it instead of a batch script.
#
#   enter.sh ENVIRONMENT COMMAND [ARGUMENT …]
#
# ENVIRONMENT is the environment.sh that hpcq wrote to the folder of the unit's pickle. To debug in a unit's environment:
#   sbatch/enter.sh logs/RUN/submitit/…/environment.sh python
set -euo pipefail
folder=$(cd -- "$(dirname -- "$1")" && pwd)
parent=${folder%/*}
# shellcheck source=SCRIPTDIR/private.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/private.sh" "$1" "$folder" "$parent" "${parent%/*}"
# shellcheck source=/dev/null
. "$1"
shift
exec "$@"

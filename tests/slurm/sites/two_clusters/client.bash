#!/usr/bin/env bash
# A login node of one cluster, from which others are reached with --clusters; $HPCQ_TEST_CLUSTERS has their configurations.
name=${0##*/} PATH=${PATH#*:} cluster=
for argument; do
    shift
    case $argument in
    --clusters=*) cluster=${argument#*=} ;;
    *) set -- "$@" "$argument" ;;
    esac
done
[ -n "$cluster" ] || exec "$name" "$@"
if [ ! -e "$HPCQ_TEST_CLUSTERS/$cluster" ]; then
    echo "$name: error: '$cluster' can't be reached now, or it is an invalid entry for --cluster." >&2
    exit 1
fi
SLURM_CONF=$(readlink "$HPCQ_TEST_CLUSTERS/$cluster")
export SLURM_CONF
case $name in
squeue | sinfo) echo "CLUSTER: $cluster" ;;
sbatch)
    answer=$(sbatch "$@") || exit
    echo "$answer;$cluster"
    exit
    ;;
esac
exec "$name" "$@"

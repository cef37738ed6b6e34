# shellcheck shell=bash
# Ends the shell unless what it is about to execute can be written by its user alone (or root); sourced, before
# anything in those places is read.
#
#   . private.sh PATH …
#
# A job's environment.sh and its pickle are code: whoever can write them, or put others in their place, acts in the
# user's name. Leaves with 77, permission denied in sysexits.h(3), after one sentence. Does not see NFSv4's own ACLs.

if ! _hpcq_exposed=$(find -H "$@" -maxdepth 0 \( -perm /022 -o ! -uid "$EUID" ! -uid 0 \) 2>/dev/null); then
    echo "hpcq: cannot tell on node $(hostname) who may write $*; nothing was started." >&2
    exit 77
elif [ -n "$_hpcq_exposed" ]; then
    echo "hpcq: others own or can write ${_hpcq_exposed//$'\n'/, }, so nothing in it is executed; type 'chmod go-w' and its path." >&2
    exit 77
fi

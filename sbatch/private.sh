# shellcheck shell=bash
# Exit unless only the user (or root) can write the files that the shell is about to execute. Sourced before anything in
# these paths is read.
#
#   . private.sh PATH …
#
# A job's environment.sh and its pickle are code: any user who can write or replace them can run commands as this user.
# Exits with 77 (permission denied in sysexits.h(3)) after a message. NFSv4 ACLs are not checked.

if ! _hpcq_unsafe=$(find -H "$@" -maxdepth 0 \( -perm /022 -o ! -uid "$EUID" ! -uid 0 \) 2>/dev/null); then
    echo "hpcq: node $(hostname) cannot check who may write $*, so nothing was started." >&2
    exit 77
elif [ -n "$_hpcq_unsafe" ]; then
    echo "hpcq: other users own or can write ${_hpcq_unsafe//$'\n'/, }, so nothing in it is executed. Run 'chmod go-w' on it." >&2
    exit 77
fi

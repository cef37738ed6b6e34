# shellcheck shell=bash
# Check that no other user can change what this shell is about to execute.
#
#   hpcq_require_private PATH … [-- PROGRAM …]
#
# Exits with 77 (permission denied in sysexits.h(3)) after a message, unless
#   - only this user or root owns each PATH, and only they can write to it;
#   - the same holds for all folders above, and above the targets of links, like ssh's StrictModes: who may write a folder
#     can replace what is in it. A folder with the sticky bit may be writable for others, and the accounts in
#     HPCQ_TRUSTED_UIDS and HPCQ_TRUSTED_GIDS (numbers, separated by spaces) may own or write it. Where their programs
#     are, such as a shared cache of environments, so may they: PROGRAM is checked like a folder above a PATH.
#
# The records, the environment.sh and the package of a job are executed: a user who can write or replace them can run
# commands as this user. A batch script contains this file, because a file that is checked cannot check itself.
# NFSv4 access lists are not checked.

# Set _hpcq_components to all folders and links by which the kernel finds the arguments, and to the arguments.
_hpcq_find_components() {
    local i path target seen=$'\n' queue=("$@")
    _hpcq_components=(/)
    for ((i = 0; i < ${#queue[@]}; i++)); do
        path=${queue[i]}
        while [ -n "$path" ]; do
            case $seen in *$'\n'"$path"$'\n'*) break ;; esac
            seen+=$path$'\n'
            _hpcq_components+=("$path")
            if [ -L "$path" ]; then
                target=$(readlink -- "$path")
                case $target in /*) ;; *) target=${path%/*}/$target ;; esac
                queue+=("$target")
            fi
            path=${path%/*}
        done
    done
}

hpcq_require_private() {
    local path unsafe above id private=() programs=() owners=(! -uid 0 ! -uid "$EUID") groups=(-perm /020)
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        private+=("$1")
        shift
    done
    [ $# -gt 0 ] && shift
    programs=("$@")
    for path in "${private[@]}" ${programs[@]+"${programs[@]}"}; do
        if [ ! -e "$path" ]; then
            echo "hpcq: node $(hostname) cannot check who may write $path, so nothing was started." >&2
            exit 77
        fi
    done
    for id in ${HPCQ_TRUSTED_UIDS:-}; do owners+=(! -uid "$id"); done
    for id in ${HPCQ_TRUSTED_GIDS:-}; do groups+=(! -gid "$id"); done
    _hpcq_find_components "${private[@]}" ${programs[@]+"${programs[@]}"}
    if ! unsafe=$(find -H "${private[@]}" -maxdepth 0 \( -perm /022 -o ! -uid "$EUID" ! -uid 0 \) 2>/dev/null) ||
        ! above=$(find "${_hpcq_components[@]}" -maxdepth 0 \
            \( "${owners[@]}" -o ! -type l ! -perm -1000 \( -perm /002 -o "${groups[@]}" \) \) 2>/dev/null); then
        echo "hpcq: node $(hostname) cannot check who may write ${private[*]}, so nothing was started." >&2
        exit 77
    elif [ -n "$unsafe" ]; then
        echo "hpcq: other users own or can write ${unsafe//$'\n'/, }, so nothing in it is executed. Run 'chmod go-w' on it." >&2
        exit 77
    elif [ -n "$above" ]; then
        echo "hpcq: other users own or can write ${above//$'\n'/, }, and so could replace what is in it: nothing was started." \
            "Run 'chmod go-w' on it, or name whom you trust in paths.trusted_users or paths.trusted_groups." >&2
        exit 77
    fi
}

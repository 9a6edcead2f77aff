# shellcheck shell=bash
# What the scripts share: flags, a pod's description, calls of gcloud. Sourced, never run; bash 3.2 is enough.
# shellcheck disable=SC2034
set -euo pipefail

PODS=${JAXLM_PODS:-$HOME/.config/jaxlm/pods} # a file a pod: what create.sh was told, for the scripts after it
CODE=jaxlm RUNS=runs LOGS=logs               # folders in the home of every worker
name='' zone='' project='' type='' version='' slices='' spot='' bucket='' dry_run=''
rest=()

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: error: $*"; exit 2; }
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }
flag() { case " $1 " in *" $2 "*) ;; *) return 1 ;; esac; }

# parse VALUES SWITCHES ARGUMENTS...: NAME and flags into variables of their names; what follows -- into `rest`.
parse() {
    local values="zone project $1" switches="dry-run $2" key
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help) usage; exit 0 ;;
        --) shift; rest=("$@"); break ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
        --*)
            key=${1#--}
            if flag "$switches" "$key"; then
                printf -v "${key//-/_}" yes
            elif flag "$values" "$key"; then
                [ $# -gt 1 ] || die "$1: expected a value"
                printf -v "${key//-/_}" %s "$2"
                shift
            else
                die "$1: unknown; $0 --help tells the flags"
            fi
            ;;
        *) [ -z "$name" ] || die "$1: expected one name, $name is given already"; name=$1 ;;
        esac
        shift
    done
    [[ $name =~ ^[a-z][a-z0-9-]{0,61}$ ]] || die "name = '$name': expected lower-case letters, digits and dashes"
    recall
}

# The pod's file fills what no flag said. It is read, not run.
recall() {
    local key value
    [ -f "$PODS/$name" ] || return 0
    while IFS='=' read -r key value; do
        flag 'zone project type version slices spot bucket' "$key" || continue
        [ -n "${!key}" ] || printf -v "$key" %s "$value"
    done <"$PODS/$name"
}

remember() {
    local key
    [ -z "$dry_run" ] || return 0
    mkdir -p "$PODS"
    for key in zone project type version slices spot bucket; do printf '%s=%s\n' "$key" "${!key}"; done >"$PODS/$name.new"
    mv "$PODS/$name.new" "$PODS/$name"
}

# limited SECONDS COMMAND...: the command, ended if it takes longer (gcloud may wait for a machine that is gone).
limited() {
    local limit=$1 pid watch status=0
    shift
    "$@" &
    pid=$!
    (
        sleep "$limit" &
        nap=$!
        trap 'kill "$nap"; exit' TERM
        wait "$nap"
        kill "$pid"
    ) >/dev/null 2>&1 &
    watch=$!
    wait "$pid" || status=$?
    kill "$watch" 2>/dev/null || true
    wait "$watch" 2>/dev/null || true
    return "$status"
}

# cloud SECONDS ARGUMENTS...: a call of gcloud that does something. It is shown, and in a dry run only shown.
cloud() {
    local limit=$1
    shift
    { printf '+ gcloud'; printf ' %q' "$@"; printf '\n'; } >&2
    [ -n "$dry_run" ] || limited "$limit" gcloud "$@"
}

at() { # where the pod is, as flags
    [ -n "$zone" ] || die "--zone: expected one (create.sh keeps it in $PODS/$name)"
    place=(--zone "$zone")
    [ -z "$project" ] || place+=(--project "$project")
}

# The state of the request: ACTIVE, SUSPENDED, ...; NONE: there is no such request; UNKNOWN: gcloud did not say.
state() {
    local said
    if said=$(limited "${PATIENCE:-120}" gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
        --format 'value(state.state)' 2>&1); then
        printf '%s\n' "${said:-UNKNOWN}"
    else
        case $said in *NOT_FOUND* | *'not found'* | *'could not be found'*) echo NONE ;; *) echo UNKNOWN ;; esac
    fi
}

nodes() { # names of the pod's slices
    local i
    if [ "${slices:-1}" = 1 ]; then echo "$name"; else for ((i = 0; i < slices; i++)); do echo "$name-$i"; done; fi
}

# everywhere SECONDS COMMAND: on every worker of every slice, side by side. Fails if one of them fails.
everywhere() {
    local limit=$1 command=$2 node bad=0 pid
    local pids=()
    for node in $(nodes); do
        cloud "$limit" compute tpus tpu-vm ssh "$node" "${place[@]}" --worker all --command "$command" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || bad=1; done
    return "$bad"
}

first() { # first SECONDS COMMAND: on the first worker of the first slice, which writes the logs
    cloud "$1" compute tpus tpu-vm ssh "$(nodes | head -n 1)" "${place[@]}" --worker 0 --command "$2"
}

word() { [[ $2 =~ ^[A-Za-z0-9._-]+$ ]] || die "--$1 = '$2': expected letters, digits, dots, dashes"; }
quoted() { printf '%q ' "$@"; }

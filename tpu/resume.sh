#!/usr/bin/env bash
# See a run through: create, set up, launch; when the pod is taken away, again, until the run is done. It goes on from
# its last checkpoint, so the pod needs a bucket. Stopped and started again, this script goes on too.
#
#     tpu/resume.sh NAME --zone us-west4-a --type v5litepod-16 --spot --bucket gs://my-runs \
#         --run RUN -- configs/quickstart.py --mesh fsdp=-1 --steps 10000
#
#     --retries   times that a run which ends by its own error is started again; default 3
#     --keep      leave the pod there in the end; default: it is given back
#     flags of create.sh; --dry-run: only show one round

set -euo pipefail
# shellcheck source=tpu/pod.sh
. "$(dirname "$0")/pod.sh"
run='' retries=3 keep=''
parse 'type slices version bucket run retries' 'spot keep' "$@"
at
word run "$run"
[[ $retries =~ ^[0-9]+$ ]] || die "--retries = '$retries': expected a number"
[ -n "$bucket" ] || die "--bucket: expected gs://NAME; without one a run is lost with its pod"
[ "${#rest[@]}" -gt 0 ] || die "expected -- CONFIG [flags of jaxlm train]"
here=$(cd "$(dirname "$0")" && pwd)
flags=("${place[@]}")
[ -z "$dry_run" ] || flags+=(--dry-run)

create() {
    local more=(--type "$type" --bucket "$bucket" --slices "${slices:-1}")
    [ -z "$version" ] || more+=(--version "$version")
    [ -z "$spot" ] || more+=(--spot)
    "$here/create.sh" "$name" "${flags[@]}" "${more[@]}" --no-wait
}
begin() {
    "$here/setup.sh" "$name" "${flags[@]}" --bucket "$bucket" &&
        "$here/launch.sh" "$name" "${flags[@]}" --run "$run" -- "${rest[@]}"
}
# On the first worker: running, the exit status, or none; nothing where it does not answer.
progress() {
    first "${PATIENCE:-120}" "if kill -0 \$(cat $LOGS/$run.pid 2>/dev/null) 2>/dev/null; then echo running
else cat $LOGS/$run.status 2>/dev/null || echo none; fi" 2>/dev/null | tail -n 1
}

if [ -n "$dry_run" ]; then
    create
    begin
    "$here/delete.sh" "$name" "${flags[@]}"
    exit 0
fi
failures=0 before=''
while :; do
    now=$(state)
    if [ "$now" = ACTIVE ]; then now="ACTIVE, $(progress || true)"; fi
    [ "$now" = "$before" ] || say "$(date '+%F %T')  $name: $now"
    before=$now
    case $now in
    NONE) create || true ;;
    FAILED | SUSPENDED) "$here/delete.sh" "$name" "${flags[@]}" || true ;;
    'ACTIVE, none') begin || true ;;
    'ACTIVE, 0') break ;;
    'ACTIVE, '[1-9]*)
        failures=$((failures + 1))
        [ "$failures" -le "$retries" ] || die "$run: ended with ${now#ACTIVE, } $failures times; the log: tpu/logs.sh $name --run $run"
        begin || true
        ;;
    esac # everything else passes by itself
    sleep "${PAUSE:-60}"
done
[ -n "$keep" ] || "$here/delete.sh" "$name" "${flags[@]}"
say "$run: done; it lies in $bucket/$run: tpu/fetch.sh $name --run $run --bucket $bucket"
